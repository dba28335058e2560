#!/bin/bash
# Runs once, as root, when Gradescope makes the image: installs Python and the course's packages.
set -e
cd /autograder/source
export DEBIAN_FRONTEND=noninteractive
apt-get update
for version in 3.13 3.12 3.11; do
    if apt-get install -y --no-install-recommends "python$version" "python$version-venv"; then break; fi
done
# Answers run as the user nobody, who must be able to read Python and the packages.
umask 022
TORCH=cpu "python$version" common/environment.py
chmod -R a+rX .venv common
