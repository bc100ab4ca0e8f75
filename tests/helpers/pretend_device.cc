// A device for Paddle that is the CPU under another name, as a plug-in library: PRETEND_NAME, twice.
//
// It has memory, streams that do everything at once, and no operators of its own; Paddle takes the CPU's for
// those. With PRETEND_BROKEN in the environment it does not start, as a device whose driver is missing.

#include <cstdint>  // Paddle 2.6's header relies on it
#include <cstdlib>
#include <cstring>

#include "paddle/phi/backends/device_ext.h"

namespace {

constexpr size_t kDevices = 2;
constexpr size_t kMemory = size_t{1} << 30;
int current = 0;

C_Status Succeed() { return C_SUCCESS; }
C_Status DeviceSucceeds(const C_Device) { return C_SUCCESS; }
C_Status StreamSucceeds(const C_Device, C_Stream) { return C_SUCCESS; }
C_Status EventSucceeds(const C_Device, C_Event) { return C_SUCCESS; }
C_Status StreamAndEventSucceed(const C_Device, C_Stream, C_Event) { return C_SUCCESS; }

C_Status SetDevice(const C_Device device) {
  if (std::getenv("PRETEND_BROKEN")) return C_FAILED;
  current = device->id;
  return C_SUCCESS;
}

C_Status GetDevice(const C_Device device) {
  device->id = current;
  return C_SUCCESS;
}

C_Status CreateStream(const C_Device, C_Stream* stream) {
  *stream = nullptr;
  return C_SUCCESS;
}

C_Status CreateEvent(const C_Device, C_Event* event) {
  *event = nullptr;
  return C_SUCCESS;
}

C_Status CallBack(const C_Device device, C_Stream stream, C_Callback callback, void* data) {
  C_Status status = C_SUCCESS;
  callback(device, stream, data, &status);
  return status;
}

C_Status Allocate(const C_Device, void** pointer, size_t size) {
  *pointer = std::malloc(size);
  return *pointer ? C_SUCCESS : C_FAILED;
}

C_Status Deallocate(const C_Device, void* pointer, size_t) {
  std::free(pointer);
  return C_SUCCESS;
}

C_Status Copy(const C_Device, void* to, const void* from, size_t size) {
  std::memcpy(to, from, size);
  return C_SUCCESS;
}

C_Status CopyInStream(const C_Device, C_Stream, void* to, const void* from, size_t size) {
  std::memcpy(to, from, size);
  return C_SUCCESS;
}

C_Status CountDevices(size_t* count) {
  *count = kDevices;
  return C_SUCCESS;
}

C_Status ListDevices(size_t* devices) {
  for (size_t i = 0; i < kDevices; ++i) devices[i] = i;
  return C_SUCCESS;
}

C_Status MemoryStats(const C_Device, size_t* total, size_t* free) {
  *total = *free = kMemory;
  return C_SUCCESS;
}

C_Status MinChunkSize(const C_Device, size_t* size) {
  *size = 512;
  return C_SUCCESS;
}

}  // namespace

extern "C" void InitPlugin(CustomRuntimeParams* params) {
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  params->device_type = const_cast<char*>(PRETEND_NAME);
  params->sub_device_type = const_cast<char*>("V1");
  C_DeviceInterface* device = params->interface;
  std::memset(static_cast<void*>(device), 0, sizeof(C_DeviceInterface));
  device->initialize = Succeed;
  device->finalize = Succeed;
  device->init_device = DeviceSucceeds;
  device->deinit_device = DeviceSucceeds;
  device->set_device = SetDevice;
  device->get_device = GetDevice;
  device->synchronize_device = DeviceSucceeds;
  device->get_device_count = CountDevices;
  device->get_device_list = ListDevices;
  device->create_stream = CreateStream;
  device->destroy_stream = StreamSucceeds;
  device->query_stream = StreamSucceeds;
  device->synchronize_stream = StreamSucceeds;
  device->stream_add_callback = CallBack;
  device->stream_wait_event = StreamAndEventSucceed;
  device->create_event = CreateEvent;
  device->record_event = StreamAndEventSucceed;
  device->destroy_event = EventSucceeds;
  device->query_event = EventSucceeds;
  device->synchronize_event = EventSucceeds;
  device->device_memory_allocate = Allocate;
  device->device_memory_deallocate = Deallocate;
  device->host_memory_allocate = Allocate;
  device->host_memory_deallocate = Deallocate;
  device->memory_copy_h2d = Copy;
  device->memory_copy_d2h = Copy;
  device->memory_copy_d2d = Copy;
  device->async_memory_copy_h2d = CopyInStream;
  device->async_memory_copy_d2h = CopyInStream;
  device->async_memory_copy_d2d = CopyInStream;
  device->device_memory_stats = MemoryStats;
  device->device_min_chunk_size = MinChunkSize;
}
