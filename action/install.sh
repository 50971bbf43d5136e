# Installs cliptune into an environment of the action's own, so that the job's packages stay as they are.
#
# Reads INPUT_PYTHON (empty: python3) and INPUT_VERSION (empty: this checkout), writes the output `python`. Python runs
# with -I: without it, `-m` would load a logging.py that lies in the job's repository.
set -euo pipefail

fail() {
    echo "::error title=cliptune::$1"
    exit 2
}

# What stands in a requirement must be a version and nothing else: no option, no address, no marker.
if [[ -n "$INPUT_VERSION" && ! "$INPUT_VERSION" =~ ^[0-9][0-9A-Za-z.+!]*$ ]]; then
    fail "version is no version such as 0.1.0: correct the input, or leave it out for the action's own"
fi
base="${INPUT_PYTHON:-python3}"
if ! "$base" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    fail "the input python names no Python 3.11 or later: install one before this step, with actions/setup-python"
fi

home="$RUNNER_TEMP/cliptune-environment"
python="$home/bin/python"
[[ "${RUNNER_OS:-}" == Windows ]] && python="$home/Scripts/python.exe"
what="${INPUT_VERSION:+cliptune==$INPUT_VERSION}"
what="${what:-$GITHUB_ACTION_PATH}"
# A job may use the action several times.
if [[ ! -f "$python" ]]; then
    "$base" -I -m venv "$home" ||
        fail "no environment could be made, for the reason above: on Debian and Ubuntu install python3-venv before"
fi
if [[ ! -f "$home/installed" || "$(< "$home/installed")" != "$what" ]]; then
    "$python" -I -m pip install --quiet --disable-pip-version-check "$what" ||
        fail "cliptune could not be installed, for the reason above: correct the input version, or run the job again"
    printf '%s\n' "$what" > "$home/installed"
fi
echo "python=$python" >> "$GITHUB_OUTPUT"
