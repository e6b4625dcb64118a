"""Peak memory and time of log-probabilities, entropies and their gradients: tiles against plain logits, in one run.

``python tests/benchmarks/bench_logits.py [--tokens 512 1024] [--words 32768 151936] [--hidden 256] [--tile 256 8192]``

Every measurement is a process of its own with one thread: on a GPU its peak is that of the allocator, on a CPU that of the process
above what it held before. Plain: the product, a log-softmax, autograd. Times are processor seconds on a CPU, the better of two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from poise_core.sampling.logprobs import TILE, token_scores


def plain(hidden: torch.Tensor, weight: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As the trainer does for small vocabularies."""
    log_probabilities = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return log_probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1), entropies


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measured(kind: str, tokens: int, words: int, width: int, tile: Sequence[int]) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass."""
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(words, width, device=device) / width**0.5).to(dtype).requires_grad_()
    chosen = torch.randint(words, (tokens,), device=device)
    # the gradient of the weights is needed either way; it is there before, so that it counts in neither
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    clock = time.perf_counter if cuda else time.process_time
    best = float("inf")
    before, peak, running = resident(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    if cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        watcher.start()
    for _ in range(2):
        started = clock()
        if kind == "tiles":
            logprobs, entropies = token_scores(hidden, weight, chosen, tokens=tile[0], words=tile[1])
        else:
            logprobs, entropies = plain(hidden, weight, chosen)
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    running = False
    if cuda:
        peak = torch.cuda.max_memory_allocated()
    else:
        watcher.join()
    return {"seconds": best, "bytes": peak - before}


def main() -> None:
    """Print a table for docs/real-models.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--words", type=int, nargs="+", default=[32768, 151936])
    parser.add_argument("--hidden", type=int, default=256)
    usual = TILE["cuda" if torch.cuda.is_available() else "cpu"]
    parser.add_argument("--tile", type=int, nargs=2, default=usual, help="tokens and words of a tile")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], int(options.one[1]), options.words[0], options.hidden, options.tile)))
        return
    print("| words | tokens | plain, MiB | tiles, MiB | plain, s | tiles, s | time |")
    print("|---|---|---|---|---|---|---|")
    for words in options.words:
        for tokens in options.tokens:
            found = {}
            for kind in ("plain", "tiles"):
                own = ["--one", kind, str(tokens), "--words", str(words), "--hidden", str(options.hidden)]
                own += ["--tile", *map(str, options.tile)]
                done = subprocess.run([sys.executable, __file__, *own], capture_output=True, text=True, check=True)
                found[kind] = json.loads(done.stdout.splitlines()[-1])
            memory = [f"{found[kind]['bytes'] / 2**20:,.0f}" for kind in ("plain", "tiles")]
            seconds = [found[kind]["seconds"] for kind in ("plain", "tiles")]
            print(
                f"| {words:,} | {tokens:,} | {' | '.join(memory)} | {seconds[0]:.2f} | {seconds[1]:.2f} | "
                f"{seconds[1] / seconds[0]:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
