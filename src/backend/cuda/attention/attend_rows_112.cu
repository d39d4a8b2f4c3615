#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<80, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<96, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<112, KvType::Bf16>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
