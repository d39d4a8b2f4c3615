// A model file without quantisation, so that llama.cpp computes what the weights really say.
#pragma once

#include <string>

namespace tidal::golden {

/// Writes `path` again with every matrix as float16. llama.cpp quantises activations to 8 bits for quantised weights
/// but not for these, so its logits on the copy are within float16's rounding of the exact ones.
void write_float_copy(const std::string& path, const std::string& to);

}  // namespace tidal::golden
