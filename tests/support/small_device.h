// The CUDA backend as on a device whose blocks have 99 KiB of shared memory (compute capability 8.6, 8.9 and 12),
// whatever the device. In a build without CUDA nothing happens.
#pragma once

namespace tidal::test {

/// As long as it lives. With TIDAL_TEST_SMALL_DEVICE in the environment every test of a backend runs so.
class SmallDevice {
 public:
  SmallDevice();
  ~SmallDevice();
  SmallDevice(const SmallDevice&) = delete;
  SmallDevice& operator=(const SmallDevice&) = delete;
};

/// For the rest of the program where the environment asks for it.
void be_small_if_asked();

}  // namespace tidal::test
