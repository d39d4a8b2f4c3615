#include "support/small_device.h"

#include <cstdlib>

#include "backend/cuda/runtime/shared_memory.h"

namespace tidal::test {
namespace {

void be_small(bool small) {
#ifdef TIDAL_CUDA
  cuda::limit_shared_memory(small ? cuda::kLeastSharedMemory : 0);
#else
  static_cast<void>(small);
#endif
}
bool asked() { return std::getenv("TIDAL_TEST_SMALL_DEVICE") != nullptr; }

}  // namespace

SmallDevice::SmallDevice() { be_small(true); }
SmallDevice::~SmallDevice() { be_small(asked()); }

void be_small_if_asked() { be_small(asked()); }

}  // namespace tidal::test
