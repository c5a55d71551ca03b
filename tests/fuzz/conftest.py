"""The fixtures of ``lived`` for the tests of this folder."""

from tests.kills.lived import api, lives, port

__all__ = ["api", "lives", "port"]
