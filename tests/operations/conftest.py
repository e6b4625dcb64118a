from collections.abc import Iterator

import pytest
from operations_stack import Operations


@pytest.fixture(scope="session")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operations]:
    made = Operations(tmp_path_factory.mktemp("operations"))
    try:
        made.up()
        yield made
    finally:
        made.down()
