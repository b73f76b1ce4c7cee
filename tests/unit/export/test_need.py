"""A missing package is one error everywhere, and says what to install."""

import pytest

from flashbulb.distill.errors import MissingExtra
from flashbulb.export.backends.base import need


def test_it_names_the_package_and_the_extra():
    with pytest.raises(MissingExtra, match=r"no_such_module: pip install 'flashbulb\[onnx\]'"):
        need("onnx", "json", "no_such_module")


def test_nothing_is_said_when_all_is_there():
    need("onnx", "json")
