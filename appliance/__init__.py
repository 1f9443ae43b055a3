"""Edge vision appliance: camera frames over QUIC to sandboxed WebAssembly handlers, results to MQTT."""

__version__ = "0.1.0"
