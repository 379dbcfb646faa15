"""Where money and episodes are kept: one module per backend, all behind the protocols of core/ports.py."""
