//! What a CPU's time goes into; `benches/peers/run.sh` sets it beside PyTorch.

use criterion::{Criterion, criterion_group, criterion_main};

use workloads::{Size, WORKLOADS};

mod workloads;

/// Small ones where criterion only tries whether all run (`--test`).
fn kernels(c: &mut Criterion) {
    let is_trial = std::env::args().any(|word| word == "--test");
    let size = if is_trial { Size::Small } else { Size::Whole };
    for (name, make) in WORKLOADS {
        // Made when it is measured, and only then: some are large.
        let mut work = None;
        c.bench_function(name, |b| {
            let work = work.get_or_insert_with(|| make(size).expect("sizes that fit"));
            b.iter(work);
        });
    }
}

criterion_group! {
    name = all;
    config = Criterion::default().sample_size(10);
    targets = kernels
}
criterion_main!(all);
