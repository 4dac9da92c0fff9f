"""Fixtures of the unit tests."""

import pytest
from small_model import FittedCampaigns, fit_campaigns


@pytest.fixture(scope="session")
def fitted_campaigns() -> FittedCampaigns:
    """One small model, fitted once for all tests that need a real one."""
    return fit_campaigns()
