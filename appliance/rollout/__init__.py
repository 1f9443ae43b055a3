"""The deployment of single handlers: what the machine of ``deploy/`` decides, carried out."""
