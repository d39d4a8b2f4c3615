#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<160, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<192, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<256, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
