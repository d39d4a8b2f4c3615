// How much shared memory a block may have: what kernels choose their shapes by.
#pragma once

#include <cstddef>

namespace tidal::cuda {

/// What every supported device has, compute capability 8.6 the least.
inline constexpr int kLeastSharedMemory = 99 * 1024;
/// What quantised products take where they can, and attention to heads of more than 256 elements needs: compute
/// capability 8.0 and 9.0 have it.
inline constexpr int kQuantisedMemory = 163 * 1024, kWideHeadMemory = 163 * 1024;

/// Shared memory that one block of the current device may ask for, in bytes.
int device_shared_memory();
/// The same, or less where limit_shared_memory() has said so.
int shared_memory_limit();
/// Has kernels choose shapes as if blocks could have no more than so many bytes, kLeastSharedMemory at least; 0: what
/// the device has. For tests of what small devices do. Holds for launches from then on: graphs that were captured and
/// workspaces that were reserved stay as they are.
void limit_shared_memory(int bytes);
/// Throws tidal::Error: `what` needs more than there is.
[[noreturn]] void fail_without_shared_memory(size_t bytes, const char* what);

}  // namespace tidal::cuda
