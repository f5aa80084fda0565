//! Work on threads of their own, for what waits for disks and decoders rather than for a pool.

/// What `work` makes of each number below `count`, in their order; the error of the first that has one.
///
/// # Errors
/// As `work`.
pub(super) fn on_threads<T: Send, E: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let part = count.div_ceil(threads.max(1)).max(1);
    let work = &work;
    let outcomes: Vec<Result<Vec<T>, E>> = std::thread::scope(|scope| {
        let of_part = |first: usize| (first..count.min(first + part)).map(work).collect();
        let running: Vec<_> =
            (0..count).step_by(part).map(|first| scope.spawn(move || of_part(first))).collect();
        running.into_iter().map(|thread| thread.join().expect("a thread that returns")).collect()
    });
    let mut all = Vec::with_capacity(count);
    for outcome in outcomes {
        all.extend(outcome?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_the_first_error_is_told() {
        for threads in [0, 1, 3, 9, 40] {
            let squares = on_threads(threads, 11, |at| Ok::<_, ()>(at * at));
            assert!(squares.expect("no error").into_iter().eq((0..11).map(|at| at * at)));
            let failed = on_threads(threads, 11, |at| if at < 4 { Ok(at) } else { Err(at) });
            assert_eq!(failed, Err(4), "{threads} threads");
        }
        assert_eq!(on_threads(2, 0, Ok::<usize, ()>), Ok(Vec::new()));
    }
}
