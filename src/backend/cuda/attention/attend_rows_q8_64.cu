#include "backend/cuda/attention/attend_rows.cuh"

namespace tidal::cuda {

template void attend_rows<16, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<32, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<48, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);
template void attend_rows<64, KvType::Q8>(const AttendRowsArgs&, cudaStream_t, int*);

}  // namespace tidal::cuda
