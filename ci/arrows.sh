#!/bin/sh
# Who may name whom. A module that breaks a rule is printed with its line, and the script fails.
set -u
cd "$(dirname "$0")/.." || exit
status=0

# forbid WHAT PATTERN PATH...: no line of code below the paths matches; comments may.
forbid() {
    what=$1 pattern=$2
    shift 2
    for path; do
        [ -e "$path" ] || { echo "$0: there is no $path" >&2 && status=1; }
    done
    hits=$(grep -rnE --include='*.rs' "$pattern" "$@" | grep -vE '^[^:]+:[0-9]+: *//')
    [ -z "$hits" ] && return
    printf 'forbidden: %s\n%s\n' "$what" "$hits" >&2
    status=1
}

# elsewhere PATTERN FILE...: the .rs files of src, but not these.
elsewhere() {
    find src -name '*.rs' | grep -vxF "$(printf '%s\n' "$@")"
}

forbid 'a tensor in the element' 'candle' src/source
forbid 'a network that knows who runs it' '(crate|super|self)::(\{.*\b)?(cascade|generator|source)\b' src/wan
forbid 'a layer that knows its network' \
    'crate::(\{.*\b)?(wan|cascade|generator|source|checkpoint|model)\b|crate::device(;|::[^ka])' src/layers
forbid 'a device that knows its user' 'crate::(\{.*\b)?(generator|cascade|source|wan)\b' src/device
forbid 'a family inside the cascade' '\b[wW]an\b|crate::wan' src/cascade
# shellcheck disable=SC2046 # one word for each file
forbid 'a feature outside the on/off pairs' 'cfg(_attr|!)?\(.*feature *=|^ *feature *= *"' $(elsewhere \
    src/lib.rs src/checkpoint/mod.rs src/device/mod.rs)
# shellcheck disable=SC2046
forbid 'hardware outside of device' 'cudarc|cuda_backend' $(elsewhere $(find src/device -name '*.rs'))
# shellcheck disable=SC2046
forbid 'unsafe where no reason is given' '\bunsafe\b' $(
    find src -name '*.rs' -exec grep -LE 'allow\(unsafe_code\)\] // ' {} +)
exit $status
