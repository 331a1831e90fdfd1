#!/bin/sh
# Prints the newest Python here that blobjax is tested on, or the one asked for: find_python.sh [3.11]. Exits with 1 if there is none.
# From 3.12 on pip installs the newer jax, which is faster and needs no workaround (blobjax/compute/xla_flags.py).
for version in ${1:-3.13 3.12 3.11}; do
  for candidate in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python python3; do
    # A pyenv shim exists for versions that are not active, and then fails; Debian's bare Python has no ensurepip.
    if "$candidate" -c "import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      echo "$candidate"
      exit 0
    fi
  done
done
echo "no Python ${1:-3.11 to 3.13} was found; install one, or name it: make PYTHON=/path/to/python" >&2
exit 1
