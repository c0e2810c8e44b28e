"""What must not be seen: which settings hold a secret, by name and by value, and text without the secrets in use.

`WORDS` is also what Spark is told to hide (`spark.redaction.regex`), so that Spark's pages and event logs hide at least
what foldin takes for a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "WORDS",
    "assigns_secret",
    "hide",
    "holds_login",
    "is_secret",
    "looks_secret",
    "names_a_secret",
    "quoted",
    "remember",
    "shown",
]

WORDS = r"password|passphrase|secret|token|jaas|azure[.]sas|(?:access|account|api|encryption|keystore|private)[._-]?key"
"""Of the name of whatever may hold a secret; for Java's regular expressions as for Python's, whatever the case."""

_WORD = re.compile(WORDS, re.IGNORECASE)
# The name ends with the word ("token.endpoint.url" is no token), or names an Azure account after it.
_NAME = re.compile(
    rf"(?:{WORDS})(?:[._-](?:key|config|id))?(?:(?:[.][\w-]+){{1,2}}[.](?:blob|dfs)[.][\w.]+)?$", re.IGNORECASE
)
# Kubernetes' own references: their values are names and places of secrets.
_REFERENCE = re.compile(r"spark[.]kubernetes[.](?:driver|executor)[.](?:secrets|secretKeyRef)[.]")
_ASSIGNED = re.compile(
    r"""(?:password|passphrase|secret(?:[._-]?key)?|access[._-]?key|token)["']?\s*=\s*(?!["']?\$\{)[^\s;&]""",
    re.IGNORECASE,
)
_AUTHORITY = re.compile(r"[A-Za-z][\w+.-]*://([^/?#\s]*)")
_LOGIN = re.compile(r"[^\s/@,:]+:[^\s/@,]+@")  # without a scheme before it, as in a list of brokers
_IN_JAAS = re.compile(r"""(?:password|secret)\w*["']?\s*=\s*["']?([^\s"';]+)""", re.IGNORECASE)
_LONG = 16  # characters of a line by which alone a secret of several lines is known

_known: frozenset[str] = frozenset()  # made anew at each change: other threads read it


def is_secret(name: str) -> bool:
    """Whether the value of a setting is a secret, by the setting's name."""
    return _NAME.search(name) is not None and not _REFERENCE.match(name)


def names_a_secret(text: str) -> bool:
    """Whether a name speaks of a secret anywhere: reason enough not to repeat what was written beside it."""
    return _WORD.search(text) is not None


def holds_login(text: str) -> bool:
    """Whether a URL in the text says user and password, as in scheme://user:password@host.

    A user alone is none (abfss://container@account), nor is a port; a password with a slash in it is found as what
    cannot be a port.
    """
    for authority in _AUTHORITY.findall(text):
        user, at, host = authority.rpartition("@")
        if ":" in user if at else re.search(r":(?!\d*$)", re.sub(r"^\[[^\]]*\]", "", host)):
            return True
    return False


def assigns_secret(text: str) -> bool:
    """Whether the text has something like "password=..." in it."""
    return _ASSIGNED.search(text) is not None


def looks_secret(value: Any) -> bool:
    """Whether a value of the configuration has a password in it: a login in a URL, "password=...", a table of such."""
    if isinstance(value, Mapping):
        return any(names_a_secret(str(key)) or looks_secret(inner) for key, inner in value.items())
    if isinstance(value, str):
        return assigns_secret(value) or holds_login(value) or _LOGIN.search(value) is not None
    return isinstance(value, Iterable) and any(looks_secret(inner) for inner in value)


def shown(loc: tuple[int | str, ...], value: Any) -> str:
    """A value as an error may repeat it: whatever is wrong with it, it may be a password in a wrong place."""
    hidden = loc[:2] == ("kafka", "options") or loc == ("spark", "conf") or any(names_a_secret(str(p)) for p in loc)
    return "(not shown)" if hidden or looks_secret(value) else repr(value)


def remember(secret: str) -> None:
    """Let `hide` take a secret out of whatever is said from now on by this process."""
    global _known
    lines = [line for line in secret.splitlines() if len(line) >= _LONG]
    forms = {secret, secret.strip(), " ".join(secret.split()), *_IN_JAAS.findall(secret), *lines}
    # As it is, and as it stands within the quotes of a JAAS line or of JSON.
    _known |= {form for found in forms if found for form in (found, quoted(found))}


def quoted(text: str) -> str:
    """What stands within double quotes for `text`."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


def hide(text: str) -> str:
    """`text` without the secrets that this process has taken from the environment or from files."""
    if not _known:
        return text
    longest_first = sorted(_known, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "[hidden]", text)
