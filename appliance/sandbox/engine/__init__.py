"""What runs a module: engines by name, behind one interface."""

from appliance.sandbox.engine.engine import Engine, Function, GuestFailedError, HostFunction, Instance, open_engine

__all__ = ["Engine", "Function", "GuestFailedError", "HostFunction", "Instance", "open_engine"]
