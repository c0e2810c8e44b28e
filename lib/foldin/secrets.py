"""Where secrets come from: the environment or files, never the configuration itself.

The configuration names them, "${env:NAME}" or "${file:/path}", and keeps the names: what they stand for is looked up
when it is used, so that no copy of a `Config` holds a secret.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from foldin.errors import ConfigError
from foldin.redaction import assigns_secret, holds_login, is_secret, quoted, remember

__all__ = ["check_place", "check_secret", "check_spark_conf", "fill", "refers"]

log = logging.getLogger("foldin.secrets")

_REFERENCE = re.compile(r"\$\{(?:env:(?P<env>[A-Za-z_][A-Za-z0-9_]*)|file:(?P<file>[^{}\x00-\x1f]+))\}")
_HOW = 'put it into the environment or a file and write "${env:NAME}" or "${file:/path}" here'
# An option of a JAAS line that holds a secret, with a value that is not wholly a reference.
_JAAS_SECRET = re.compile(
    r"""[\w.]*(password|passphrase|secret)[\w.]*["']?\s*=(?!\s*["']?\$\{(env|file):[^{}]+\}["']?(\s|;|$))""",
    re.IGNORECASE,
)
# What stands before a secret within a longer value: an assignment, or the user of a URL.
_BEFORE = re.compile(r"""(?:(?:password|passphrase|secret|key|token)["']?\s*=\s*["']?|//[^/@\s]*:)$""", re.IGNORECASE)
# Needed by spark-submit itself or by the command that starts a JVM: ps shows it to everybody.
_ON_COMMAND_LINE = re.compile(r"JavaOptions$|^spark[.](?:jars|submit|files|archives|master$|driver[.](?:extra|memory))")
_LARGEST = 1 << 16  # bytes; what is longer is the wrong file
_told: set[Path] = set()


def refers(value: str) -> bool:
    """Whether a setting names something in the environment or in a file."""
    return _REFERENCE.search(value) is not None


def check_secret(key: str, value: str) -> None:
    """Refuse a secret that is written out.

    Raises:
        ValueError: names the setting and the rule, never the value.
    """
    if key.lower().endswith("jaas.config"):
        literal = _JAAS_SECRET.search(value) is not None
    elif is_secret(key):
        literal = _REFERENCE.sub("", value).strip() != "" or not refers(value)
    else:
        # A reference stands for a word without any meaning of its own: what is left must hold no secret.
        bare = re.sub(r":\$\{\}@", "@", _REFERENCE.sub("${}", value))
        literal = assigns_secret(bare) or holds_login(bare)
    if literal:
        raise ValueError(f"{key!r} holds a secret: {_HOW}")


def check_spark_conf(conf: dict[str, str]) -> dict[str, str]:
    """The settings, if no secret is written out or would stand on a command line, and a command line can carry them.

    Raises:
        ValueError: names the setting and the rule, never the value.
    """
    for key, value in conf.items():
        if not key or re.search(r"[\s=\x00-\x1f]", key):
            raise ValueError(f"{key!r} is no name of a setting: no blanks, no '='")
        if "\0" in value:
            raise ValueError(f"the value of {key!r} has a NUL character")
        if _ON_COMMAND_LINE.search(key) and (refers(value) or assigns_secret(value) or holds_login(value)):
            raise ValueError(f"{key!r} goes onto the command line of a JVM, which everybody can read: no secret there")
        check_secret(key, value)
    return conf


def check_place(place: str) -> str:
    """A path, URI or name of a table as the configuration may have it.

    Raises:
        ValueError: it has control characters (it would forge lines of a log), or a password.
    """
    if re.search(r"[\x00-\x1f\x7f]", place):
        raise ValueError("must not have control characters")
    if holds_login(place):
        raise ValueError("must not hold a login: credentials go into [spark] conf, from the environment or a file")
    return place


def fill(section: str, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings with each reference replaced by what it names; `redaction.hide` knows the secrets from then on.

    Args:
        section: what an error is said to be of: "kafka.options".

    Raises:
        ConfigError: names the setting and the variable or file that is missing or of no use, never a value.
    """
    return {key: _filled(f"{section}: {key!r}", key, text) for key, text in settings.items()}


def _filled(setting: str, key: str, text: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = _variable(setting, match["env"]) if match["env"] else _content(setting, match["file"])
        before = text[: match.start()]
        if match["file"] or is_secret(key) or _BEFORE.search(before):
            remember(found)
        if before.endswith('"') and text[match.end() :].startswith('"'):
            return quoted(found)  # within the quotes of a JAAS line, a quote of the password's own would end it
        return found

    return _REFERENCE.sub(value, text)


def _variable(setting: str, name: str) -> str:
    if name not in os.environ:
        raise ConfigError(f"{setting} needs the environment variable {name}, which is not set")
    return os.environ[name]


def _content(setting: str, name: str) -> str:
    """What a file holds, without the line end that editors put there.

    A name that is no full path is one of systemd's credentials.
    """
    path = Path(name)
    if not path.is_absolute():
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(f"{setting}: the file {name!r} is no full path, and CREDENTIALS_DIRECTORY is not set")
        path = Path(folder, name)
    try:
        # A pipe that nobody writes to would be waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{setting}: {path} is not a file")
            mode = stat.S_IMODE(status.st_mode)
            if mode & stat.S_IWOTH:
                raise ConfigError(f"{setting}: every user may write {path} (mode {mode:04o}): chmod o-rw")
            text = file.read(_LARGEST + 1).decode()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{setting}: {path} is not UTF-8 text") from None
    if mode & stat.S_IROTH and path not in _told:
        _told.add(path)
        log.warning("every user may read the secret in %s (mode %04o)", path, mode)
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or len(text) > _LARGEST or "\0" in text:
        fault = "is empty" if not text else "has a NUL character" if "\0" in text else f"has more than {_LARGEST} bytes"
        raise ConfigError(f"{setting}: {path} {fault}")
    return text
