#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<80, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<96, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<112, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
