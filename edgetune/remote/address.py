"""Where a device is: `ssh://user@host:port`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgetune.errors import UsageError

# A name of ~/.ssh/config, a host or an IP address; none that ssh would take for an option.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:%-]*|::[A-Za-z0-9.:%]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@\\-]*")


@dataclass(frozen=True)
class Address:
    """A host as ssh knows it; what is null is left to the user's ssh configuration."""

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        """As ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """The address in `ssh://[user@]host[:port]`. Raises UsageError for anything else."""
    try:
        parts = urlsplit(text)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as why:
        msg = f"{text}: no address of a host ({why})"
        raise UsageError(msg, "write it as ssh://user@host:port") from why
    if parts.scheme != "ssh" or not host:
        msg = f"{text}: no address of a host"
        raise UsageError(msg, "write it as ssh://user@host or ssh://user@host:port")
    if parts.password is not None:
        msg = f"ssh://{host}: a password has no place in an address"
        raise UsageError(msg, "use a key and the ssh agent")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        msg = f"{text}: more than a host"
        raise UsageError(msg, "write it as ssh://user@host:port, without a folder")
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)):
        msg = f"{text}: no name of a host or user"
        raise UsageError(msg, "write it as ssh://user@host:port")
    # urlsplit lowers the host; names in ssh's configuration may have capitals.
    start = text.lower().rindex(host, 0, len(text))
    return Address(text[start : start + len(host)], user, port or None)
