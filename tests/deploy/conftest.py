"""The photographs and the finished run that these tests share."""

from tests.images import finished, photos

__all__ = ["finished", "photos"]
