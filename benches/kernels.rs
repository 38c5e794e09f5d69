//! What a CPU's time goes into; `benches/peers/run.sh` sets it beside PyTorch.

use criterion::{Criterion, criterion_group, criterion_main};

use workloads::{Size, WORKLOADS};

mod workloads;

fn kernels(c: &mut Criterion) {
    for (name, make) in WORKLOADS {
        // Made when it is measured, and only then: some are large.
        let mut work = None;
        c.bench_function(name, |b| {
            let work = work.get_or_insert_with(|| make(Size::Whole).expect("sizes that fit"));
            b.iter(|| work());
        });
    }
}

criterion_group! {
    name = all;
    config = Criterion::default().sample_size(10);
    targets = kernels
}
criterion_main!(all);
