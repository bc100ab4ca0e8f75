"""The names by which this room knows `ppfcos.files`."""

from ppfcos.files import replacing, require_writable

__all__ = ["replacing", "require_writable"]
