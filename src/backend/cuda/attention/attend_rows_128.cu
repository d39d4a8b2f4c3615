#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<128, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
