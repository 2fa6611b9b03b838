"""A trained run behind HTTP: `launch.py serve WORKDIR`. It wants starlette and uvicorn: requirements-serve.txt."""
