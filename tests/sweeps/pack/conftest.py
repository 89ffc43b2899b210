import pytest
from played_pack import packs_over


@pytest.fixture
def run(tiny_base):
    return packs_over(tiny_base)
