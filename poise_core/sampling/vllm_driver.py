"""The program that runs in vLLM's own environment: it knows vLLM and the standard library, and nothing of this package.

``poise_core.sampling.vllm`` starts it by the path of this file and talks to it in lines of JSON, one answer for every question.
Tokens and log-probabilities travel as safetensors. vLLM and its libraries print what they like, so that their output goes to the
error stream.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue
from typing import Any

_questions: SimpleQueue[dict[str, Any]] = SimpleQueue()


class _Engine:
    """One vLLM engine and the version of the policy that it has."""

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about
        self._llm: Any = None
        self._version = ""

    def load(self, version: str, folder: str) -> dict[str, Any]:
        """Start the engine with the first policy, and replace the weights by those of every later one."""
        if self._llm is None:
            self._llm = self._started(folder)
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self._llm.reset_prefix_cache()
            if self._about["cpu"]:
                self._llm.apply_model(_packed_anew)
        self._version = version
        return {"version": version}

    def _started(self, folder: str) -> Any:
        from vllm import LLM

        about = self._about
        settings = {
            "model": folder,
            "tokenizer": folder,
            "dtype": about["dtype"],
            "max_model_len": about["context"],
            "tensor_parallel_size": about["parallel"],
            "generation_config": "vllm",  # not the policy's own top-p and top-k
            "logprobs_mode": "processed_logprobs",  # at the sampling temperature
            "skip_tokenizer_init": not about["stops"],
            "disable_log_stats": True,
            "trust_remote_code": False,
            "enforce_eager": about["cpu"],
            "seed": 0,
        }
        if about["head"]:
            settings["hf_overrides"] = {"head_dtype": about["head"]}
        if about["cpu"]:
            settings["kv_cache_memory_bytes"] = int(about["memory_gib"] * 2**30)
        else:
            settings["gpu_memory_utilization"] = about["memory_share"]
        return LLM(**settings)

    def sample(self, question: dict[str, Any]) -> dict[str, Any]:
        """Draw completions and write them; every row has a seed of its own."""
        import torch
        from safetensors.torch import save_file
        from vllm import SamplingParams

        prompts, parameters = [], []
        for number, seed in enumerate(question["seeds"]):
            prompts.append({"prompt_token_ids": question["prompts"][number // question["samples"]]})
            parameters.append(
                SamplingParams(
                    temperature=question["temperature"],
                    seed=seed,
                    max_tokens=question["max_length"],
                    stop_token_ids=question["eos_ids"],
                    ignore_eos=True,  # the policy's own end tokens are among those
                    logprobs=0,
                    detokenize=bool(question["stop"]),
                    stop=question["stop"] or None,
                    include_stop_str_in_output=True,  # the text belongs to the completion, as in the trainer's own sampler
                    skip_special_tokens=False,  # a stop text may be one
                )
            )
        outputs = [output.outputs[0] for output in self._llm.generate(prompts, parameters, use_tqdm=False)]
        ids = [list(output.token_ids) for output in outputs]
        logprobs = [
            [found[token].logprob for token, found in zip(output.token_ids, output.logprobs, strict=True)]
            for output in outputs
        ]
        tensors = {
            "lengths": torch.tensor([len(row) for row in ids]),
            "ids": torch.tensor([token for row in ids for token in row], dtype=torch.int64),
            "logprobs": torch.tensor([value for row in logprobs for value in row], dtype=torch.float32),
            "finished": torch.tensor([output.finish_reason == "stop" for output in outputs]),
        }
        save_file(tensors, question["out"])
        return {"version": self._version}

    def score(self, ids: list[int]) -> dict[str, Any]:
        """Return the log-probabilities of a prompt's tokens but the first."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        (output,) = self._llm.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
        found = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        return {"logprobs": [place[token].logprob for token, place in found]}


def _packed_anew(model: Any) -> None:
    """Pack the weights of heads that share them with the embedding, which on a processor vLLM 0.32 does at the first load only."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for module in model.modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _answer(engine: _Engine, question: dict[str, Any]) -> dict[str, Any]:
    kind = question.pop("ask")
    if kind == "load":
        return engine.load(question["version"], question["folder"])
    if kind == "sample":
        return engine.sample(question)
    return engine.score(question["ids"])


def _kind(error: BaseException) -> str:
    text = f"{type(error).__name__} {error}".lower()
    if "no space left" in text:
        return "disk full"
    return "out of memory" if "out of memory" in text or "outofmemory" in text else "died"


def _listen() -> None:
    for line in sys.stdin:
        _questions.put(json.loads(line))
    os._exit(0)  # whoever asked has gone, also in the middle of an answer


def main() -> None:
    """Answer questions until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    about = json.loads(sys.argv[1])
    os.environ.update(about.pop("variables"))
    threading.Thread(target=_listen, daemon=True).start()
    import torch
    import vllm

    about["cpu"] = not torch.cuda.is_available()
    engine = _Engine(about)
    answers.write(json.dumps({"version": vllm.__version__, "torch": torch.__version__, "cpu": about["cpu"]}) + "\n")
    while True:
        try:
            answer = _answer(engine, _questions.get())
        except Exception as error:
            import traceback

            traceback.print_exc()
            answer = {"fault": _kind(error), "message": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
