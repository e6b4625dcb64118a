"""What the shell that started a process has set, and what of it must not reach into ours.

``settle`` is the first thing that the command line and the package of flows do. Afterwards the process and its children find the
project's own packages whatever else is on the path, speak to this machine without a proxy, and have a home folder.
"""

from __future__ import annotations

import atexit
import getpass
import importlib.util
import ipaddress
import os
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from poise_core.escaping import without_credentials
from poise_core.failures import InfrastructureError

PACKAGES = ("flows", "tasks")
"""Top-level packages of the project whose names a folder of the user's may hold, too."""

_ROOT = Path(__file__).resolve().parents[1]
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_SCHEMES = ("http", "https", "socks5", "socks5h")


def cache_folder() -> Path:
    """The user's folder for what can be made again: ``XDG_CACHE_HOME/poise``, by default ``~/.cache/poise``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poise"


def settle() -> None:
    """Do everything of this module that needs no knowledge of what the process is for; a second call changes nothing."""
    put_own_packages_first()
    never_proxy_loopback()
    have_a_home()


# ---- modules


def put_own_packages_first() -> None:
    """Let the names of ``PACKAGES`` mean the folders beside ``poise_core``, and PYTHONPATH come after what is installed.

    A module of the user's that is called like one of ours, or like a library, would otherwise be imported in its place. Confined
    processes do not see PYTHONPATH at all, so a run never depends on it.
    """
    given = {os.path.realpath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder}
    moved = [folder for folder in sys.path if folder and os.path.realpath(folder) in given - {str(_ROOT)}]
    sys.path[:] = [*(folder for folder in sys.path if folder not in moved), *moved]
    for name in PACKAGES:
        file = _ROOT / name / "__init__.py"
        present = getattr(sys.modules.get(name), "__file__", None)
        if not file.is_file() or (present is not None and os.path.realpath(present) == str(file)):
            continue
        spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
        assert spec is not None
        assert spec.loader is not None
        for stranger in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[stranger]
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


# ---- proxies


def is_loopback(address: str) -> bool:
    """Whether a URL leads to this machine and nowhere else."""
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or host == "0.0.0.0" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def never_proxy_loopback(*addresses: str) -> None:
    """Except this machine from the proxies of the environment, for this process and its children.

    What the user has excepted stays excepted, in the form that all HTTP clients here can read: one of them fails on networks of
    IPv6 and on ports that are no numbers.

    Args:
        *addresses: further URLs; those on this machine are excepted by their host, too, such as 127.0.0.2.
    """
    given = [part for name in ("no_proxy", "NO_PROXY") for part in os.environ.get(name, "").split(",")]
    if "*" in map(str.strip, given):
        excepted = "*"
    else:
        hosts = [urlsplit(address).hostname or "" for address in addresses if is_loopback(address)]
        excepted = ",".join(dict.fromkeys(filter(None, (*map(_readable, given), *_LOOPBACK, *hosts))))
    os.environ.update(no_proxy=excepted, NO_PROXY=excepted)


def _readable(host: str) -> str:
    """An entry of NO_PROXY as every client reads it; "" where one of them would fail on it."""
    host = host.strip()
    if "://" in host:
        return host
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    if host.count(":") > 1:  # of IPv6
        return "" if "/" in host else host
    return "" if ":" in host and not host.rpartition(":")[2].isdecimal() else host


def settle_proxies(*addresses: str) -> None:
    """Make sure that the proxies of the environment do not get in the way of what the process is about to ask.

    Args:
        *addresses: URLs of everything that it will ask by HTTP.

    Raises:
        InfrastructureError: a proxy is of a kind that the HTTP clients here cannot use, and an address lies outside this machine:
            going there without the proxy is nothing that the user has asked for. Where none does, such a proxy is forgotten,
            because these clients fail on it for every address.
    """
    never_proxy_loopback(*addresses)
    outside = [address for address in addresses if address and not is_loopback(address)]
    for name in [name for name in os.environ if name.lower() in _PROXIES]:
        if not (fault := _fault_of_proxy(os.environ[name])):
            continue
        if outside:
            where = without_credentials(outside[0])
            raise InfrastructureError(f"{name} {fault}; {where} cannot be reached through it: correct or unset {name}")
        del os.environ[name]


def _fault_of_proxy(proxy: str) -> str:
    """What is wrong with the value of a proxy's variable; "" where nothing is."""
    if not proxy:
        return ""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.port == 0 or " " in parts.netloc:
            return "is no address of a proxy"
    except ValueError:
        return "is no address of a proxy"
    if parts.scheme not in _SCHEMES or proxy != proxy.strip():
        return "is no address of a proxy that can be used, which begins with http://, https:// or socks5://"
    if not parts.hostname or parts.fragment or parts.query:
        return "is no address of a proxy (characters such as # in its password are written as %23)"
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "names a SOCKS proxy, which needs a package (pip install 'httpx[socks]')"
    return ""


# ---- home


def have_a_home() -> None:
    """Give the process a home folder and a user name where it has none, as in a container under a number of its own.

    Libraries look for settings of theirs there and fail where nothing says what it is; nothing of a run lies in it.
    """
    if os.path.expanduser("~") == "~":
        home = tempfile.mkdtemp(prefix="poise-home-")
        os.environ["HOME"] = home
        atexit.register(shutil.rmtree, home, ignore_errors=True)
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
