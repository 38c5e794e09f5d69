#!/bin/sh
# ci/instructions.sh [--write]
# Instructions of each workload of benches/workloads, on one thread of a processor that callgrind emulates:
# whatever else the machine does, they are the same. Fails where one takes 3 % more than
# benches/instructions.txt says, or 3 % less: then that file is to be written anew.
set -eu
cd "$(dirname "$0")/.."
committed=benches/instructions.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

once=$(CARGO_TERM_COLOR=never cargo bench --no-run --bench once 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[ -x "$once" ] || {
    echo "ci/instructions.sh: the bench does not build" >&2
    exit 1
}

# count WORKLOAD TIMES: of the whole program.
count() {
    log=$(RAYON_NUM_THREADS=1 RUST_BACKTRACE=0 valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        "$once" "$1" "$2" small 2>&1) || {
        echo "$log" >&2
        return 1
    }
    echo "$log" | sed -n 's/.*Collected : *//p'
}

# Twice the work more, so that what comes before it does not count.
difference() {
    thrice=$(count "$1" 3) && single=$(count "$1" 1) && echo "$1 $(((thrice - single) / 2))"
}

counts() {
    for workload in linear attention conv3d_step dit_first dit_steady vae_decode taehv_decode; do
        difference $workload >"$scratch/$workload" &
    done
    wait
    cat "$scratch"/*
}

if [ "${1:-}" = --write ]; then
    counts | tee "$committed"
    exit
fi
counts | awk -v slack=0.03 '
    NR == FNR { expected[$1] = $2; next }
    {
        ratio = $2 / expected[$1]
        printf "%-14s %12d  %.3f of %d\n", $1, $2, ratio, expected[$1]
        if (ratio > 1 + slack || ratio < 1 - slack) failed = 1
        delete expected[$1]
    }
    END {
        for (workload in expected) failed = 1 # it was not counted
        if (failed) print "instructions have changed; ci/instructions.sh --write where that is meant" > "/dev/stderr"
        exit failed
    }' "$committed" -
