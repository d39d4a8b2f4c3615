#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<160, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<192, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<256, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
