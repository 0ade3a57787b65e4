"""Names of iterations."""

from __future__ import annotations

import pytest

from distconv.iterations import iteration_name


@pytest.mark.parametrize(("iteration", "directory"), [("release", "release"), ("1000", "iter_0001000")])
def test_the_iteration_names_the_directory(iteration, directory):
    assert iteration_name(iteration) == directory
