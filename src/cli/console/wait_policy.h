// How long threads wait for each other before they sleep.
#pragma once

namespace tidal {

/// GCC's OpenMP runtime, on which tidal, ggml and oneDNN all run, spins for about 3 ms at every barrier before a thread
/// sleeps (GOMP_SPINCOUNT 300000). On cores that other processes keep busy the thread it waits for is often the one
/// that it keeps from running, and all threads become many times slower than one. It reads its settings when it is
/// loaded, before main(); so this sets a shorter wait and begins the program anew, once.
///
/// Does nothing where the user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY, or when the program cannot be begun anew.
/// Call it before anything else.
void wait_shortly(char** arguments);

}  // namespace tidal
