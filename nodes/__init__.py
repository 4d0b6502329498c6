"""ComfyUI nodes: thin layers over diag_core."""
