"""Lists in Redis: how they are laid out, the scripts that write them in order, and how an online service reads them.

    foldin:active                 hash: model_version (whose lists count), sequence (of its row in `models`),
                                  query and batch (who pushes, and the last micro-batch that is here whole)
    foldin:lists:VERSION          hash: user_id -> the newest list under that model, as JSON
    foldin:popular:VERSION        the most popular items of that model, as JSON: for users without a list

The lists of a model lie in a hash of their own, so a swap of models is the change of one field, atomic for readers, and
so is the way back; a model that is retired is two keys to delete, whatever a crash has left half done.

Nothing here imports pyspark: a service needs `redis` alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from foldin.answers import UserRecommendations
from foldin.errors import ConfigError, FoldinError, MissingModelError, PrerequisiteError, StateMismatchError

__all__ = ["LostListsError", "RedisLists", "Target", "redis_failures"]

_VARIABLE = "FOLDIN_REDIS_URL"
_PREFIX = re.compile(r"[\w.:{}-]{1,64}", re.ASCII)
_TIMEOUT = 10.0  # seconds that an answer may take
_RETRIES = 5  # with growing pauses, 4 s in all: a restart, a failover

# A list replaces one that includes less of `events`, never the other way round: what comes twice or late changes
# nothing. Of two at one position, which include the same events, the one made last stays.
_PUT = """
local layout = '^{"events_version":(%-?%d+),"events_index":(%-?%d+),"folded_at_us":(%-?%d+)'
local written = 0
for i = 1, #ARGV, 2 do
  local newer = true
  local held = redis.call('HGET', KEYS[1], ARGV[i])
  if held then
    local mine, theirs = {string.match(ARGV[i + 1], layout)}, {string.match(held, layout)}
    newer = false
    for k = 1, 3 do
      local a, b = tonumber(mine[k]), tonumber(theirs[k])
      if a ~= b then newer = a > b break end
    end
  end
  if newer then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    written = written + 1
  end
end
return written
"""
# Does Redis hold all that a query has pushed up to a batch? A new query (-1) takes over, and readers go on with what is
# there until its own first swap.
_HOLDS = """
local query, batch = unpack(redis.call('HMGET', KEYS[1], 'query', 'batch'))
if query == ARGV[1] then
  return (tonumber(batch) >= tonumber(ARGV[2])) and 'yes' or 'behind'
end
if tonumber(ARGV[2]) >= 0 then return query and 'other' or 'gone' end
redis.call('HSET', KEYS[1], 'query', ARGV[1], 'batch', -1)
redis.call('HDEL', KEYS[1], 'sequence')
return 'yes'
"""
_DONE = """
local query = redis.call('HGET', KEYS[1], 'query')
if query ~= ARGV[1] then return query and 'other' or 'gone' end
if tonumber(redis.call('HGET', KEYS[1], 'batch')) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'batch', ARGV[2])
end
return 'yes'
"""
_SWAP = """
local query = redis.call('HGET', KEYS[1], 'query')
if query ~= ARGV[1] then return query and 'other' or 'gone' end
local sequence = redis.call('HGET', KEYS[1], 'sequence')
if not sequence or tonumber(sequence) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'sequence', ARGV[2], 'model_version', ARGV[3])
end
return 'yes'
"""
_WHY_NOT = {
    "gone": "holds nothing of what this query has pushed (it was emptied)",
    "behind": "has lost the last lists that this query has pushed (it was restored, or failed over)",
    "other": "is written to by another query",
}


class LostListsError(StateMismatchError):
    """Redis does not hold what a query has pushed, or another query writes there."""


@dataclass(frozen=True)
class Target:
    """Where lists go. It travels to Spark's workers; its URL, which may hold a password, is never shown.

    Attributes:
        url: redis://[user[:password]@]host[:port][/database], or rediss:// for TLS.
        prefix: of all keys.
    """

    url: str = field(repr=False)
    prefix: str = "foldin"

    def __str__(self) -> str:
        where = self._parsed()
        address = f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"
        return f"Redis at {where.get('path', address)}"

    @classmethod
    def of(cls, url: str | None, prefix: str = "foldin") -> Target:
        """The server that `url` names, or the variable FOLDIN_REDIS_URL: only there a password may stand.

        Raises:
            ConfigError: neither does, or it is not a URL of Redis, or a password stands in `url`.
            PrerequisiteError: redis-py is not installed.
        """
        _redis()
        given = "--url" if url is not None else _VARIABLE
        target = cls(url if url is not None else os.environ.get(_VARIABLE, ""), prefix)
        if not target.url:
            raise ConfigError(f"which Redis? --url and {_VARIABLE} are not set")
        if not _PREFIX.fullmatch(prefix):
            raise ConfigError(f"--prefix {prefix!r}: it must match {_PREFIX.pattern}")
        try:
            parsed = target._parsed()
        except ValueError:  # its text may hold a part of a password that is not encoded
            raise ConfigError(
                f"{given}: not a URL of Redis: redis://[user[:password]@]host[:port][/database] or rediss:// (TLS); "
                "in a password all but letters and digits is percent-encoded"
            ) from None
        if url is not None and "password" in parsed:
            raise ConfigError(
                f"--url holds a password, which everybody on this machine can see: set {_VARIABLE} instead"
            )
        return target

    def connect(self) -> Any:
        """A `redis.Redis`; nothing is sent yet."""
        redis = _redis()
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        retry = Retry(ExponentialBackoff(cap=2, base=0.1), _RETRIES)
        return redis.Redis.from_url(
            self.url, decode_responses=True, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=retry
        )

    def _parsed(self) -> Mapping[str, Any]:
        from redis.connection import parse_url

        found: Mapping[str, Any] = parse_url(self.url)
        return found


@dataclass(frozen=True)
class RedisLists:
    """The lists in one Redis.

    Attributes:
        client: a `redis.Redis` with `decode_responses=True`.
        prefix: of all keys.
    """

    client: Any
    prefix: str = "foldin"

    def recommendations_for(self, user_id: str) -> UserRecommendations:
        """The user's newest list under the active model; the most popular items for who has none.

        Raises:
            MissingModelError: no model's lists are here yet.
        """
        version = self._active()
        while True:
            text = self.client.hget(self._lists(version), user_id)
            if text is None:
                text = self.client.get(self._popular(version))
            now = version if text is not None else self._active()
            if now == version:
                break
            version = now  # the one before was retired between the two looks
        held: dict[str, Any] = json.loads(text) if text is not None else {"items": [], "source": "popularity"}
        items = tuple((item["item_id"], float(item["score"])) for item in held["items"])
        return UserRecommendations(user_id, version, items, held["source"])

    def put(self, model_version: str, lists: Sequence[tuple[str, str]]) -> int:
        """Write (user_id, list as JSON) where it is newer than what is there; how many were.

        The JSON begins with events_version, events_index and folded_at_us, in this order and without blanks.
        """
        args = [part for row in lists for part in row]
        return int(self._scripts["put"](keys=[self._lists(model_version)], args=args))

    def check(self, query_id: str, batch_id: int) -> None:
        """Redis must hold all batches of a query up to `batch_id`; with -1 the query takes over.

        Raises:
            LostListsError: it does not.
        """
        self._ask("holds", query_id, batch_id)

    def done(self, query_id: str, batch_id: int) -> None:
        """All lists of a batch are here.

        Raises:
            LostListsError: another query has taken over, or Redis was emptied.
        """
        self._ask("done", query_id, batch_id)

    def swap(self, query_id: str, sequence: int, model_version: str, popular: Iterable[tuple[str, int]]) -> None:
        """Let readers see the lists of a model, unless they see those of a later promotion.

        Args:
            sequence: of the model's active row in `models`.
            popular: (item_id, users), the most popular first.

        Raises:
            LostListsError: another query has taken over, or Redis was emptied.
        """
        items = [{"item_id": item, "score": float(users)} for item, users in popular]
        self.client.set(self._popular(model_version), json.dumps({"source": "popularity", "items": items}))
        self._ask("swap", query_id, sequence, model_version)

    def versions(self) -> set[str]:
        """The models of which it holds lists."""
        start = f"{self.prefix}:lists:"
        return {str(key).removeprefix(start) for key in self.client.scan_iter(f"{start}*", count=1000)}

    def drop(self, model_versions: Iterable[str]) -> None:
        """Forget models, but never the one that readers see."""
        active = self.client.hget(self._control, "model_version")
        for version in model_versions:
            if version != active:
                # At once: who misses a list that has just gone must not find the popular items instead.
                self.client.unlink(self._lists(version), self._popular(version))

    def _active(self) -> str:
        version = self.client.hget(self._control, "model_version")
        if version is None:
            raise MissingModelError(f"no lists of an active model under {self._control}; run the push job first")
        return str(version)

    def _ask(self, script: str, query_id: str, *args: str | int) -> None:
        answer = self._scripts[script](keys=[self._control], args=[query_id, *args])
        if answer != "yes":
            raise LostListsError(_WHY_NOT[answer])

    @property
    def _control(self) -> str:
        return f"{self.prefix}:active"

    def _lists(self, model_version: str) -> str:
        return f"{self.prefix}:lists:{model_version}"

    def _popular(self, model_version: str) -> str:
        return f"{self.prefix}:popular:{model_version}"

    @cached_property
    def _scripts(self) -> dict[str, Any]:
        texts = {"put": _PUT, "holds": _HOLDS, "done": _DONE, "swap": _SWAP}
        return {name: self.client.register_script(text) for name, text in texts.items()}


@contextmanager
def redis_failures(target: Target) -> Iterator[None]:
    """What the client raises within, as one line that names the server and no password.

    Raises:
        ConfigError: the login is refused.
        FoldinError: any other failure.
    """
    _redis()
    from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError

    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise ConfigError(f"{target}: {_line(error)}") from None
    except RedisError as error:
        raise FoldinError(f"{target}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _redis() -> Any:
    try:
        import redis
    except ImportError as error:
        raise PrerequisiteError("pushing lists needs redis-py: pip install 'redis>=5'") from error
    return redis
