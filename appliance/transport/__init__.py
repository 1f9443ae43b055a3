"""Frames and control messages over QUIC: thin shells over aioquic, one stream per frame."""
