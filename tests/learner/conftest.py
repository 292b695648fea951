"""The tiny pipeline and the single thread of the policies' tests."""

from tests.common.policies.conftest import one_thread, tiny_folder

__all__ = ["one_thread", "tiny_folder"]
