# Source this from bash or zsh:  . setup/env.sh
# Puts this work tree in front: ROS 2 (from .venv, or as sourced before), the built messages, and the Python sources, so
# that an edit needs no build. Only a change of msg/, CMakeLists.txt, launch/ or config/ (new files) needs `make build`.

RLT_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"

_rlt_prepend() {  # VARIABLE FOLDER: put FOLDER first, once
  local value
  eval "value=\${$1:-}"
  case ":$value:" in
    *":$2:"*) ;;
    *) export "$1=$2${value:+:$value}" ;;
  esac
}

if [ -x "$RLT_ROOT/.venv/bin/python3" ]; then
  if [ -n "${ROS_DISTRO:-}" ]; then  # a sourced ROS of another Python and the wheels do not mix
    unset ROS_DISTRO ROS_VERSION AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH
  fi
  _rlt_prepend PATH "$RLT_ROOT/.venv/bin"
  _rlt_prepend AMENT_PREFIX_PATH "$RLT_ROOT/.venv"
  _rlt_prepend CMAKE_PREFIX_PATH "$RLT_ROOT/.venv"
  _rlt_prepend LD_LIBRARY_PATH "$RLT_ROOT/.venv/lib"
  # A machine that has ROS only in .venv simulates: it should not meet the robots of the same network.
  if [ -z "${ROS_AUTOMATIC_DISCOVERY_RANGE:-}${FASTDDS_DEFAULT_PROFILES_FILE:-}" ]; then
    export ROS_AUTOMATIC_DISCOVERY_RANGE=SUBNET FASTDDS_DEFAULT_PROFILES_FILE="$RLT_ROOT/config/loopback.xml"
  fi
fi
_rlt_prefix="$RLT_ROOT/install/rlt_ros"
_rlt_prepend PATH "$_rlt_prefix/bin"
_rlt_prepend AMENT_PREFIX_PATH "$_rlt_prefix"
_rlt_prepend LD_LIBRARY_PATH "$_rlt_prefix/lib"
for _rlt_packages in "$_rlt_prefix"/lib/python3*/site-packages; do
  _rlt_prepend PYTHONPATH "$_rlt_packages"
done
_rlt_prepend PYTHONPATH "$RLT_ROOT"
export MUJOCO_GL="${MUJOCO_GL:-egl}"
unset _rlt_prefix _rlt_packages
unset -f _rlt_prepend
