"""Prices of listed vehicles: what a vehicle like this is offered for, in which range, and why."""

from mlflywheel.models.vehicle_price.model import VehiclePrice

__all__ = ["VehiclePrice"]
