// A part of a CUDA graph that a replay leaves out unless a flag holds: captured into the body of a conditional node.
#include "cuda_launch.cuh"

// Conditional nodes came with CUDA 12.3, capture into a graph with 12.3 as well, and edges with data with 12.3 and 13.
#if CUDART_VERSION >= 12040
#define LOUISKV_BRANCHES 1
#endif

namespace louiskv {
namespace {

#ifdef LOUISKV_BRANCHES

__global__ void decide(cudaGraphConditionalHandle handle, const bool* flags, int64_t count) {
  int any = 0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) any |= flags[i];
  any = __syncthreads_or(any);
  if (threadIdx.x == 0) cudaGraphSetConditional(handle, any != 0);
}

// What a stream's capture stands at.
struct Capture {
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* after = nullptr;
  size_t num_after = 0;

  cudaError_t read(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    unsigned long long id;
#if CUDART_VERSION >= 13000
    const cudaGraphEdgeData* edges = nullptr;
    cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &id, &graph, &after, &edges, &num_after);
#else
    cudaError_t error = cudaStreamGetCaptureInfo_v2(stream, &status, &id, &graph, &after, &num_after);
#endif
    if (error == cudaSuccess && status != cudaStreamCaptureStatusActive) error = cudaErrorStreamCaptureInvalidated;
    return error;
  }
};

cudaError_t begin(const bool* flags, int64_t count, cudaStream_t stream, cudaStream_t inside) {
  Capture capture;
  cudaError_t error = capture.read(stream);
  if (error != cudaSuccess) return error;
  cudaGraphConditionalHandle handle;
  error = cudaGraphConditionalHandleCreate(&handle, capture.graph, 0, cudaGraphCondAssignDefault);
  if (error != cudaSuccess) return error;
  decide<<<1, 128, 0, stream>>>(handle, flags, count);
  error = cudaPeekAtLastError();
  if (error == cudaSuccess) error = capture.read(stream);
  if (error != cudaSuccess) return error;
  cudaGraphNodeParams node = {};
  node.type = cudaGraphNodeTypeConditional;
  node.conditional.handle = handle;
  node.conditional.type = cudaGraphCondTypeIf;
  node.conditional.size = 1;
  cudaGraphNode_t added;
#if CUDART_VERSION >= 13000
  error = cudaGraphAddNode(&added, capture.graph, capture.after, nullptr, capture.num_after, &node);
#else
  error = cudaGraphAddNode(&added, capture.graph, capture.after, capture.num_after, &node);
#endif
  if (error != cudaSuccess) return error;
#if CUDART_VERSION >= 13000
  error = cudaStreamUpdateCaptureDependencies(stream, &added, nullptr, 1, cudaStreamSetCaptureDependencies);
#else
  error = cudaStreamUpdateCaptureDependencies(stream, &added, 1, cudaStreamSetCaptureDependencies);
#endif
  if (error != cudaSuccess) return error;
  return cudaStreamBeginCaptureToGraph(inside, node.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                       cudaStreamCaptureModeRelaxed);
}

#endif

}  // namespace
}  // namespace louiskv

// Begins to capture, from the stream `inside`, what a replay does only if one of the flags [count] holds when it comes
// there; `stream` is being captured, and goes on behind it.
LOUISKV_EXPORT int louiskv_branch_begin(const bool* flags, int64_t count, void* inside, int device, void* stream) {
  using namespace louiskv;
#ifdef LOUISKV_BRANCHES
  cudaError_t error = cudaSuccess;
  const int other = OnDevice(device).run([&] {
    error = begin(flags, count, static_cast<cudaStream_t>(stream), static_cast<cudaStream_t>(inside));
  });
  return error != cudaSuccess ? error : other;
#else
  (void)flags, (void)count, (void)inside, (void)device, (void)stream;
  return cudaErrorNotSupported;
#endif
}

// Ends it.
LOUISKV_EXPORT int louiskv_branch_end(void* inside, int device, void*) {
  using namespace louiskv;
  cudaError_t error = cudaSuccess;
  const int other = OnDevice(device).run([&] {
    cudaGraph_t body;
    error = cudaStreamEndCapture(static_cast<cudaStream_t>(inside), &body);
  });
  return error != cudaSuccess ? error : other;
}

// Whether there are such parts: by the CUDA that this was compiled with, and by the driver.
LOUISKV_EXPORT int louiskv_branches() {
#ifdef LOUISKV_BRANCHES
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12040;
#else
  return 0;
#endif
}
