//! The simulation itself.

use crate::run::run;

#[test]
fn a_seed_is_one_exact_run() {
    for seed in 1..20 {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.failure, None, "seed {seed}");
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
        assert!(first.requests >= 200 && first.faults.iter().filter(|(_, struck)| *struck > 0).count() >= 3);
    }
}
