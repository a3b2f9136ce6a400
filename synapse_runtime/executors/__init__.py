"""Executors: each takes a call somewhere, lets the kernel run it there, and brings the run back."""
