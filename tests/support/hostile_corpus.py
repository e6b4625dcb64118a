"""Hostile and careless candidates, with the result that the gate must give for each.

Every entry is a sound candidate with a payload in one place. A payload that reads something forbidden raises it as an error
(``LOOT``), because error texts reach the report, and the test asserts that the report does not contain it. For a payload that
writes, connects or starts a process, the test looks for traces outside the sandbox. Placeholders: ``@READ@`` is a file with a
secret, ``@WRITE@`` a path that must not be created, ``@PORT@`` a listening TCP port, ``@MARK@`` a number that marks processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from gate_fixtures import ADVANTAGE, BASE, RATIO, edited

SECRET_VARIABLE = "POISE_TEST_SECRET"

REFUSED = "refused"  # by the language check, nothing runs
REJECTED = "rejected"  # by a later check, or because the process ended
TIMED_OUT = "timed_out"
OUT_OF_MEMORY = "out_of_memory"
ADMITTED = "admitted"  # harmless once confined


@dataclass(frozen=True)
class Hostile:
    """One candidate of the corpus."""

    name: str
    family: str
    source: str
    static: str  # outcome with the language check
    dynamic: frozenset[str]  # acceptable outcomes without it
    alone: bool = False  # needs a sandbox to itself

    @property
    def label(self) -> str:
        """Family and name."""
        return f"{self.family}: {self.name}"


def _body(payload: str) -> str:
    """The payload at the top of compute_advantages."""
    lines = "".join(f"    {line}\n" for line in payload.splitlines())
    return edited((ADVANTAGE, lines + ADVANTAGE))


def _module(payload: str) -> str:
    """The payload at module level, behind the imports."""
    return edited(("\nLOSS_AGGREGATION", f"\n{payload}\n\nLOSS_AGGREGATION"))


def _hostile(
    family: str,
    name: str,
    payload: str,
    *outcomes: str,
    static: str = REFUSED,
    module: bool = False,
    alone: bool = False,
) -> Hostile:
    source = (_module if module else _body)(payload)
    return Hostile(name, family, source, static, frozenset(outcomes or (REJECTED,)), alone)


LOOT = "raise ValueError('LOOT ' + str({}))"


def _loot(family: str, name: str, expression: str, before: str = "", *outcomes: str) -> Hostile:
    return _hostile(family, name, (before + "\n" if before else "") + LOOT.format(expression), *outcomes)


FILES = [
    _loot("file", "open_read", "open('@READ@').read()"),
    _loot("file", "pathlib_read", "pathlib.Path('@READ@').read_text()", "import pathlib"),
    _loot("file", "os_open_read", "os.read(os.open('@READ@', 0), 100)", "import os"),
    _loot("file", "linecache_read", "linecache.getlines('@READ@') or open('@READ@')", "import linecache"),
    _loot("file", "numpy_read", "numpy.fromfile('@READ@', dtype='uint8').tobytes()", "import numpy"),
    _hostile("file", "open_write", "open('@WRITE@', 'w').write('x')"),
    _hostile("file", "write_and_hide", "try:\n    open('@WRITE@', 'w').write('x')\nexcept Exception:\n    pass", ADMITTED),
    _hostile("file", "delete_the_package",
             "import poise_core, shutil\nshutil.rmtree(poise_core.__path__[0], ignore_errors=True)", ADMITTED, REJECTED),
    _hostile("file", "overwrite_an_algorithm",
             "from poise_core.algorithms import algorithm_path\nalgorithm_path('grpo').write_text('x')"),
    _hostile("file", "fill_the_disk",
             "with open('/tmp/big', 'wb') as f:\n    for _ in range(100000):\n        f.write(bytes(1 << 20))"),
    _hostile("file", "write_a_startup_file", "import site\nopen(site.getsitepackages()[0] + '/x.pth', 'w').write('x')"),
]  # fmt: skip

NETWORK = [
    _hostile("network", "socket_connect", "import socket\nsocket.create_connection(('127.0.0.1', @PORT@), timeout=2).send(b'hi')"),
    _hostile("network", "urllib", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:@PORT@/', timeout=2)"),
    _hostile("network", "outside", "import socket\nsocket.create_connection(('1.1.1.1', 53), timeout=2)"),
    _hostile("network", "udp", "import socket\nsocket.socket(2, 2).sendto(b'hi', ('127.0.0.1', @PORT@))", REJECTED, ADMITTED),
    _hostile("network", "torch_store",
             "torch.distributed.TCPStore('127.0.0.1', @PORT@, 1, False, __import__('datetime').timedelta(seconds=1))",
             REJECTED, TIMED_OUT),
    _hostile("network", "torch_hub", "torch.hub.download_url_to_file('http://127.0.0.1:@PORT@/', '@WRITE@')"),
]  # fmt: skip

ENVIRONMENT = [
    _loot("environment", "os_environ", f"os.environ['{SECRET_VARIABLE}']", "import os"),
    _loot("environment", "proc_self_environ", "open('/proc/self/environ').read()"),
    _loot("environment", "parent_environ", "[open(f'/proc/{p}/environ').read() for p in (os.getppid(), 1)]", "import os"),
    _loot("environment", "all_environ",
          "found", "import glob\nfound = ''\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
                   "    try:\n        found += open(path).read()\n    except OSError:\n        pass"),
]  # fmt: skip

BUILTINS = [
    _loot("builtins", "eval", "eval(\"open('@READ@').read()\")"),
    _hostile("builtins", "exec", "exec(\"open('@WRITE@', 'w')\")"),
    _hostile("builtins", "dunder_import", "__import__('os').system('touch @WRITE@')", ADMITTED, REJECTED),
    _loot("builtins", "getattr_by_text", "getattr(torch, 'os').environ"),
    _loot("builtins", "globals", "globals()['__builtins__']['open']('@READ@').read()"),
    _hostile("builtins", "unicode_disguise", "ｏｐｅｎ('@WRITE@', 'w')"),
    _hostile("builtins", "breakpoint", "breakpoint()", REJECTED, ADMITTED),
    _hostile("builtins", "input", "input()", REJECTED),
]  # fmt: skip

DUNDER = [
    _loot("dunder", "subclasses",
             "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['cat', '@READ@'])"),
    _loot("dunder", "function_globals", "group_mean.__globals__['torch'].os.environ"),
    _loot("dunder", "builtins_of_module", "torch.__builtins__['open']('@READ@').read()"),
    _hostile("dunder", "replace_code", "group_mean.__code__ = (lambda values, group_ids, where=None, empty=0.0: values).__code__"),
    _hostile("dunder", "class_hook", "class Sneaky:\n    def __init_subclass__(cls):\n        open('@WRITE@', 'w')\n\n\n"
                                     "class More(Sneaky):\n    pass", module=True),
    _hostile("dunder", "metaclass_call", "type('X', (), {'__del__': lambda self: open('@WRITE@', 'w')})()", ADMITTED, REJECTED),
]  # fmt: skip

FORMATS = [
    _loot("format string", "format_attribute", "'{0.__class__.__init__.__globals__}'.format(batch)", "", REJECTED),
    _loot("format string", "f_string_attribute", "f'{torch.os.environ}'"),
    _hostile("format string", "format_width_bomb", "text = '{:>{}}'.format('x', 10**10)", OUT_OF_MEMORY, REJECTED),
    _hostile("format string", "percent_width_bomb", "text = '%*d' % (2**31 - 2, 1)", ADMITTED, OUT_OF_MEMORY, REJECTED),
]  # fmt: skip

TORCH = [
    _hostile("torch", "torch_load", "torch.load('@READ@', weights_only=False)"),
    _hostile("torch", "torch_save", "torch.save(batch.correctness, '@WRITE@')"),
    _hostile("torch", "from_file", "torch.from_file('@WRITE@', shared=True, size=10)"),
    _hostile("torch", "untyped_storage_file", "torch.UntypedStorage.from_file('@WRITE@', True, 10)"),
    _loot("torch", "os_through_torch", "torch.os.environ"),
    _loot("torch", "sys_through_torch", "torch.sys.modules['os'].environ"),
    _loot("torch", "os_through_submodule", "torch.serialization.os.environ"),
    _hostile("torch", "ops_load_library", "torch.ops.load_library('@READ@')"),
    _hostile("torch", "classes_load_library", "torch.classes.load_library('@READ@')"),
    _hostile("torch", "cpp_extension",
             "from torch.utils.cpp_extension import load_inline\nload_inline('x', 'int f() { return 1; }', functions=['f'])"),
    _hostile("torch", "jit_load", "torch.jit.load('@READ@')"),
    _hostile("torch", "compile",
             "batch = torch.compile(lambda x: x.exp())(batch.correctness) and batch", REJECTED, ADMITTED, TIMED_OUT),
    _hostile("torch", "multiprocessing",
             "import torch.multiprocessing as mp\nmp.Process(target=torch.os.system, args=('touch @WRITE@',)).start()"),
    _hostile("torch", "numpy_tofile", "batch.correctness.numpy().tofile('@WRITE@')"),
    Hostile("methods_through_hyperparameters", "torch", edited(
        ("    clip_eps: float = 0.2\n", "    clip_eps: float = 0.2\n    numpy: float = 0.0\n    tofile: float = 0.0\n"),
        ("\n\ndef compute_advantages", "\n\ndef first(hp):\n    return hp.numpy()\n\n\n"
         "def second(hp):\n    return hp.tofile('@WRITE@')\n\n\ndef compute_advantages"),
        (ADVANTAGE, f"    x = second(first(batch.correctness))\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    _hostile("torch", "tensor_hook", "x = torch.ones(1, requires_grad=True)\nx.register_hook(lambda g: open('@WRITE@', 'w'))",
             ADMITTED, REJECTED),
    _hostile("torch", "uninitialised_memory", "advantage = torch.empty(10)\nbatch.correctness.new_empty(5)", ADMITTED),
]  # fmt: skip

MEMORY = [
    _hostile("memory bomb", "huge_tensor", "torch.zeros(10**11)", OUT_OF_MEMORY),
    _hostile("memory bomb", "growing_list", "rows = []\nwhile True:\n    rows.append(bytes(1 << 20))", OUT_OF_MEMORY),
    _hostile("memory bomb", "expand_and_clone", "torch.ones(1).expand(200000, 200000).clone()", OUT_OF_MEMORY),
    _hostile("memory bomb", "powers_of_a_shape",
             "n = batch.completion_mask.numel() + 2000\nspace = torch.zeros((n, n, n))", OUT_OF_MEMORY, static=OUT_OF_MEMORY),
    _hostile("memory bomb", "shared_memory", "import mmap\nspace = mmap.mmap(-1, 1 << 36)", REJECTED, OUT_OF_MEMORY),
    _hostile("memory bomb", "text_repeated", "text = 'x' * 10**11", OUT_OF_MEMORY),
]  # fmt: skip

TIME = [
    _hostile("time bomb", "while_true", "while True:\n    pass", TIMED_OUT),
    _hostile("time bomb", "sleep", "import time\ntime.sleep(10**6)", TIMED_OUT),
    _hostile("time bomb", "nested_ranges", "for a in range(1000):\n    for b in range(1000):\n        for c in range(1000):\n"
                                           "            pass", TIMED_OUT),
    _hostile("time bomb", "long_range", "total = sum(range(10**13))", TIMED_OUT),
    _hostile("time bomb", "list_grows_while_iterated",
             "rows = [1.0]\nfor row in rows:\n    rows.append(row)", OUT_OF_MEMORY, TIMED_OUT),
    _hostile("time bomb", "ignores_signals",
             "import signal\nfor number in (15, 24):\n    signal.signal(number, signal.SIG_IGN)\nwhile True:\n    pass", TIMED_OUT),
    _hostile("time bomb", "matrix_products",
             "x = torch.ones((900, 900))\nfor i in range(1000):\n    x = x @ x @ x @ x @ x @ x @ x @ x",
             TIMED_OUT, static=TIMED_OUT),
]  # fmt: skip

RECURSION = [
    _hostile("recursion", "calls_itself", "return compute_advantages(batch, hp, dynamics)"),
    _hostile("recursion", "raises_the_limit",
             "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x) + 1\nf(1)", REJECTED, OUT_OF_MEMORY, TIMED_OUT),
    _hostile("recursion", "deep_source", "x = " + "[" * 150 + "1" + "]" * 150, ADMITTED),
    _hostile("recursion", "deep_operators", "x = " + "-" * 20000 + "1", REJECTED),
]  # fmt: skip

INTEGERS = [
    _hostile("huge integer", "tower", "x = 9**9**9**9", TIMED_OUT, OUT_OF_MEMORY),
    _hostile("huge integer", "shift", "x = 1 << (1 << 40)", OUT_OF_MEMORY, REJECTED),
    _hostile("huge integer", "literal", "x = " + "9" * 5000, REJECTED),
    _hostile("huge integer", "repeated_squares",
             "n = 3\nfor i in range(100):\n    n = n * n", TIMED_OUT, OUT_OF_MEMORY, static=TIMED_OUT),
]  # fmt: skip

GLOBAL_STATE = [
    _hostile("global state", "default_dtype", "torch.set_default_dtype(torch.float64)"),
    _hostile("global state", "manual_seed", "torch.manual_seed(0)"),
    _hostile("global state", "threads", "torch.set_num_threads(2)"),
    _hostile("global state", "grad_mode", "torch.autograd.grad_mode.set_grad_enabled(False)", REJECTED, ADMITTED),
    _hostile("global state", "chdir", "import os\nos.chdir('/')"),
    _hostile("global state", "environment", "import os\nos.environ['OMP_NUM_THREADS'] = '64'"),
    _hostile("global state", "deterministic", "torch.use_deterministic_algorithms(True)", REJECTED, TIMED_OUT),
]  # fmt: skip

MONKEYPATCHING = [
    _hostile("monkeypatching", "torch_function", "torch.exp = torch.sin"),
    _hostile("monkeypatching", "reductions", "import poise_core.reductions as r\nr.aggregate_loss = r.group_mean"),
    _hostile("monkeypatching", "tensor_method", "torch.Tensor.norm = lambda *a, **k: torch.zeros(())"),
    _hostile("monkeypatching", "builtin", "import builtins\nbuiltins.sum = max"),
    _hostile("monkeypatching", "allclose", "torch.allclose = lambda *a, **k: True"),
    _hostile("monkeypatching", "at_import", "torch.minimum = torch.maximum", module=True),
]  # fmt: skip

MUTATION = [
    _hostile("input mutation", "in_place_method", "batch.correctness.add_(0.0).mul_(0.5)"),
    _hostile("input mutation", "index_assignment", "batch.old_logprobs[:, 0] = 0.0"),
    _hostile("input mutation", "augmented_alias", "mask = batch.completion_mask\nmask &= batch.format_valid.unsqueeze(-1)"),
    _hostile("input mutation", "alias_through_a_method", "reward = batch.correctness.float()\nreward *= 0.5", static=REJECTED),
    _hostile("input mutation", "writes_into_the_controller", "memory = dynamics.controller\nmemory['calls'] = 1.0"),
    _hostile("input mutation", "out_argument", "torch.exp(batch.entropies, out=batch.entropies)"),
    _hostile("input mutation", "frozen_field", "object.__setattr__(batch, 'correctness', 1.0 - batch.correctness)", REJECTED),
]  # fmt: skip

STATEFUL = [
    _hostile("state", "table_of_mechanisms", "memory = MECHANISMS\nmemory['calls'] = {'clip_eps': memory.get('calls', 1)}"),
    _hostile("state", "global_counter", "global COUNT\nCOUNT = globals().get('COUNT', 0) + 1"),
    Hostile("default_argument", "state", edited(
            ("\n\ndef compute_advantages", "\n\ndef remember(seen=[]):\n    seen.append(1)\n\n\n"
            "def compute_advantages"), (ADVANTAGE, f"    remember()\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    _hostile("state", "function_attribute", "compute_loss.calls = getattr(compute_loss, 'calls', 0) + 1"),
    Hostile("module_list", "state", edited(("\nLOSS_AGGREGATION", "\nSEEN = []\n\nLOSS_AGGREGATION"),
            (ADVANTAGE, f"    SEEN.append(1)\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    _hostile("state", "acts_after_many_calls", "compute_loss.n = getattr(compute_loss, 'n', 0) + 1\n"
                                               "if compute_loss.n > 10**6:\n    open('@WRITE@', 'w')"),
]  # fmt: skip

RANDOMNESS = [
    _hostile("randomness", "torch_rand", "noise = torch.rand(3)"),
    _hostile("randomness", "python_random", "import random\nnoise = random.random()"),
    _hostile("randomness", "clock", "import time\nbatch = type(batch)(batch.correctness * (1.0 + time.time() % 1.0), *"
                                    "[getattr(batch, n) for n in batch.__slots__[1:]])"),
    _hostile("randomness", "peeks_at_the_rng", "state = torch.get_rng_state()\nbias = float(state[0]) * 0.0", ADMITTED),
    _hostile("randomness", "dropout", "noisy = torch.nn.functional.dropout(batch.correctness, 0.5)"),
]  # fmt: skip

BENCHMARKS = [
    _hostile("benchmark hunting", "imports_environments",
             "import poise_core.environments.arithmetic as a\nx = dir(a)", ADMITTED, REJECTED),
    _loot("benchmark hunting", "walks_the_disk", "[open(p).read() for p in hits]",
          "import os\nhits = [os.path.join(d, n) for top in ('/home', '/root', '/tmp', '/var', '/srv', '/mnt', '/work')\n"
          "        for d, _, names in os.walk(top) if 'site-packages' not in d and 'lib/python' not in d\n"
          "        for n in names if n == 'secret-answers.json']"),
    _loot("benchmark hunting", "garbage_collector", "len(found)",
          "import gc\nfound = [o for o in gc.get_objects() if type(o).__name__ == 'Problem']"),
    _loot("benchmark hunting", "callers_frames", "sys._getframe(3).f_locals.keys()", "import sys"),
]  # fmt: skip

PROCESSES = [
    _hostile("fork bomb", "fork", "import os\nwhile True:\n    os.fork()"),
    _hostile("fork bomb", "subprocess", "import subprocess\nsubprocess.Popen(['sleep', '@MARK@'])"),
    _hostile("fork bomb", "daemon", "import os\nif os.fork() == 0:\n    os.setsid()\n    os.execvp('sleep', ['sleep', '@MARK@'])"),
    _hostile("fork bomb", "multiprocessing",
             "import multiprocessing\n[multiprocessing.Process(target=print).start() for _ in range(500)]"),
    _hostile("fork bomb", "exec", "import os\nos.execvp('sleep', ['sleep', '@MARK@'])"),
    _hostile("fork bomb", "threads",
             "from threading import Thread\nfrom time import sleep\n"
             "for _ in range(10**6):\n    Thread(target=sleep, args=(100,), daemon=True).start()",
             REJECTED, TIMED_OUT, OUT_OF_MEMORY),
    _hostile("process", "exits", "import os\nos._exit(0)"),
    _hostile("process", "system_exit", "raise SystemExit(0)"),
    _hostile("process", "kills_itself", "import os\nos.kill(os.getpid(), 9)", OUT_OF_MEMORY, REJECTED),
    _hostile("process", "kills_everything", "import os\nos.kill(-1, 9)", OUT_OF_MEMORY, REJECTED, ADMITTED, alone=True),
    _hostile("process", "crashes_the_interpreter", "import ctypes\nctypes.string_at(0)"),
    _hostile("process", "new_namespace",
             "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0:\n    open('@WRITE@', 'w')", ADMITTED),
    _hostile("process", "traces_its_parent",
             "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0:\n    open('@WRITE@', 'w')", ADMITTED),
]  # fmt: skip


def _loss(family: str, name: str, payload: str, *outcomes: str, static: str = REFUSED) -> Hostile:
    """The payload at the top of compute_loss."""
    lines = "".join(f"    {line}\n" for line in payload.splitlines())
    return Hostile(name, family, edited((RATIO, lines + RATIO)), static, frozenset(outcomes or (REJECTED,)))


HOLES = [
    _hostile("found hole", "comprehension_target_exec",
             "unused = [exec for exec in (1,)]\nexec(\"open('@WRITE@', 'w')\")"),
    _hostile("found hole", "comprehension_target_eval",
             "unused = [eval for eval in (1,)]\nwrote = eval(\"open('@WRITE@', 'w')\")"),
    _loot("found hole", "generator_target", "eval(\"open('@READ@').read()\")", "unused = sum(1 for eval in (1,))"),
    _hostile("found hole", "annotation_that_calls", "Q: exec(\"open('@WRITE@', 'w')\") = 1", ADMITTED, module=True),
    _hostile("found hole", "annotation_in_a_list", "SCALE: [eval(\"open('@WRITE@', 'w')\")] = 2", ADMITTED, module=True),
    _hostile("found hole", "dataclass_as_a_value", "remade = dataclass(Advantages)", ADMITTED, REJECTED),
    Hostile("module_tensor", "found hole", edited(
        ("import torch\n", "import torch\nfrom torch import tensor\n"),
        ("\nLOSS_AGGREGATION", "\nBUFFER = tensor((0.0, 0.0))\n\nLOSS_AGGREGATION"),
        (ADVANTAGE, f"    state = BUFFER.float()\n    state[0] = state[0] + 1.0\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    Hostile("helper_that_returns_its_argument", "found hole", edited(
        ("\n\ndef compute_advantages", "\n\ndef same(v: torch.Tensor) -> torch.Tensor:\n    return v\n\n\ndef compute_advantages"),
        (ADVANTAGE, f"    y = same(batch.correctness)\n    y[0] = 1.0\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    Hostile("relu_in_place_by_position", "found hole", edited(
        ("import torch\n", "import torch\nimport torch.nn.functional as F\n"),
        (ADVANTAGE, f"    spoiled = F.relu(batch.old_logprobs, True)\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    Hostile("module_list_from_sorted", "found hole", edited(("\nLOSS_AGGREGATION", "\nSEEN = sorted((1, 2))\n\nLOSS_AGGREGATION"),
            (ADVANTAGE, f"    SEEN.append(1)\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    Hostile("module_iterator", "found hole", edited(
        ("\nLOSS_AGGREGATION", "\nLEFT = enumerate((1.0, 2.0, 3.0))\n\nLOSS_AGGREGATION"),
        (ADVANTAGE, f"{ADVANTAGE}    advantage = advantage * (1.0 + sum(one for _, one in zip(range(1), LEFT) for one in one))\n")),
        REFUSED, frozenset({REJECTED})),
    Hostile("relu_in_place_under_another_name", "found hole", edited(
        ("import torch\n", "import torch\nfrom torch.nn.functional import relu as r\n"),
        (ADVANTAGE, f"    spoiled = r(batch.old_logprobs, True)\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    Hostile("relu_in_place_as_a_value", "found hole", edited(
        ("import torch\n", "import torch\nimport torch.nn.functional as F\n"),
        (ADVANTAGE, f"    f = F.relu\n    spoiled = f(batch.old_logprobs, True)\n{ADVANTAGE}")), REFUSED, frozenset({REJECTED})),
    _hostile("found hole", "dict_update_unbound", "dict.update(dynamics.controller, {'calls': 1.0})", REJECTED, ADMITTED),
    _hostile("found hole", "argument_through_max", "seen = max((batch.correctness,))\nseen[0] = 1.0"),
    Hostile("another_decorator_called_dataclass", "found hole", edited(
        ("from dataclasses import dataclass\n\nimport torch\n", "import torch\nfrom torch import clip as dataclass\n")),
        REFUSED, frozenset({REJECTED})),
    _hostile("found hole", "text_of_the_batch_through_a_name", "s = '%s'\ntext = s % batch", ADMITTED),
    _hostile("found hole", "no_grad_makes_a_function",
             "g = torch.no_grad()\nf = g(group_mean)\nx = f(batch.correctness, batch.group_ids)", ADMITTED),
    _hostile("found hole", "another_device", "x = batch.correctness.to('cuda')"),
    _hostile("found hole", "late_future", "from __future__ import annotations", module=True),
    _loss("found hole", "mask_widened", "seen = inputs.mask.bool()\nseen[:, :] = True", static=REJECTED),
    _loss("found hole", "leaf_overwritten", "seen = inputs.logprobs.detach()\nseen[:, :] = 0.0", static=REJECTED),
    _loss("found hole", "huge_integer_in_the_loss", "x = 1000000\nfor i in range(60):\n    x = x * x", TIMED_OUT, static=TIMED_OUT),
]  # fmt: skip


def _careless(name: str, source: str, static: str, *dynamic: str) -> Hostile:
    return Hostile(name, "careless", source, static, frozenset(dynamic or (static,)))


CARELESS = [
    _careless("syntax_error", BASE.replace("return LossOutputs(", "return LossOutputs(("), REFUSED, REJECTED),
    _careless("no_loss", BASE[: BASE.index("def compute_loss")], REJECTED),
    _careless("nan_in_uniform_groups",
              edited((ADVANTAGE, ADVANTAGE + "    spread = group_mean(advantage.square(), batch.group_ids).sqrt()\n"
                                             "    advantage = advantage / spread\n")),
              REJECTED),
    _careless("scalar_loss", BASE.replace("token_loss=-surrogate", "token_loss=-surrogate.mean()"), REJECTED),
    _careless("unmasked_mean", edited((ADVANTAGE, ADVANTAGE + "    advantage = advantage * batch.entropies.mean()\n")), REJECTED),
    _careless("fixed_group_size", edited((ADVANTAGE, "    groups = batch.correctness.view(-1, 8)\n"
                                                     "    advantage = (groups - groups.mean(-1, keepdim=True)).flatten()\n")),
              REJECTED),
    _careless("wrong_sign", BASE.replace("token_loss=-surrogate", "token_loss=surrogate"), REJECTED),
    _careless("detached_ratio", BASE.replace("inputs.mask).exp()", "inputs.mask).exp().detach()"), REJECTED),
    _careless("hides_errors", edited((ADVANTAGE, f"    try:\n    {ADVANTAGE}    except Exception:\n        advantage = None\n")),
              REFUSED, ADMITTED),
    _careless("raises_on_edge",
              edited((ADVANTAGE, f"    if batch.correctness.sum() == 0:\n        raise ValueError('no success')\n{ADVANTAGE}")),
              REFUSED, REJECTED),
    _careless("misspelt_field", BASE.replace("inputs.old_logprobs", "inputs.old_log_probs"), REFUSED, REJECTED),
    _careless("misspelt_function", BASE.replace("torch.minimum(", "torch.minimun("), REFUSED, REJECTED),
    _careless("mutable_default",
              BASE.replace("clip_eps: float = 0.2", "clip_eps: float = 0.2\n    weights: list = []"), REFUSED, REJECTED),
    _careless("answers_in_markdown", f"Here is the algorithm:\n```python\n{BASE}```\n", REFUSED, REJECTED),
    _careless("empty_file", "", REJECTED),
    _careless("whole_batch_loss",
              BASE.replace("token_loss=-surrogate", "token_loss=-surrogate / masked_mean(ratio, inputs.mask)"), REJECTED),
]  # fmt: skip

CORPUS: tuple[Hostile, ...] = (
    *FILES, *NETWORK, *ENVIRONMENT, *BUILTINS, *DUNDER, *FORMATS, *TORCH, *MEMORY, *TIME, *RECURSION, *INTEGERS, *GLOBAL_STATE,
    *MONKEYPATCHING, *MUTATION, *STATEFUL, *RANDOMNESS, *BENCHMARKS, *PROCESSES, *HOLES, *CARELESS,
)  # fmt: skip
