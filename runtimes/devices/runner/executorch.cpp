// ExecuTorch: the XNNPACK delegate and the optimised kernels register themselves when they are linked.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include <cstring>
#include <stdexcept>

#include "runner.hpp"

namespace executorch::extension::threadpool {
// Declared here, because the wheel carries the library but not this header.
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace flashbulb {
namespace {

using executorch::aten::ScalarType;
using executorch::runtime::EValue;

ScalarType scalar(const std::string& dtype) {
  if (dtype == "float32") return ScalarType::Float;
  if (dtype == "float16") return ScalarType::Half;
  if (dtype == "int32") return ScalarType::Int;
  if (dtype == "int64") return ScalarType::Long;
  if (dtype == "int8") return ScalarType::Char;
  return ScalarType::Byte;
}

std::string word(ScalarType type) {
  for (const char* dtype : {"float32", "float16", "int32", "int64", "int8", "uint8"})
    if (scalar(dtype) == type) return dtype;
  throw std::runtime_error("a result of a dtype that has no name here");
}

[[noreturn]] void refuse(const std::string& what, executorch::runtime::Error error) {
  throw std::runtime_error(what + ": ExecuTorch error " + std::to_string(static_cast<int>(error)));
}

class Program : public Model {
 public:
  Program(const std::string& file, const std::string& method)
      : module_(file, executorch::extension::Module::LoadMode::Mmap), method_(method) {
    using executorch::runtime::Program;
    const auto error = module_.load(Program::Verification::InternalConsistency);
    if (error != executorch::runtime::Error::Ok) refuse("cannot load the program", error);
    const auto loaded = module_.load_method(method_);
    if (loaded != executorch::runtime::Error::Ok) refuse("cannot load the method " + method_, loaded);
  }

  std::vector<Tensor> run(std::vector<Tensor>& inputs, const std::vector<std::string>& outputs) override {
    std::vector<executorch::extension::TensorPtr> held;
    std::vector<EValue> values;
    for (Tensor& input : inputs) {
      std::vector<executorch::aten::SizesType> shape(input.shape.begin(), input.shape.end());
      held.push_back(executorch::extension::from_blob(input.bytes.data(), shape, scalar(input.dtype)));
      values.emplace_back(*held.back());
    }
    auto found = module_.execute(method_, values);
    if (!found.ok()) refuse("cannot run " + method_, found.error());
    std::vector<Tensor> results;
    for (size_t i = 0; i < found->size(); ++i) {
      const std::string name = i < outputs.size() ? outputs[i] : std::to_string(i);
      results.push_back(copied(name, (*found)[i]));
    }
    return results;
  }

 private:
  static Tensor copied(const std::string& name, const EValue& value) {
    if (!value.isTensor()) throw std::runtime_error("the result " + name + " is no tensor");
    const auto& tensor = value.toTensor();
    Tensor result{name, word(tensor.scalar_type()), {}, {}};
    result.shape.assign(tensor.sizes().begin(), tensor.sizes().end());
    const auto* start = static_cast<const unsigned char*>(tensor.const_data_ptr());
    result.bytes.assign(start, start + tensor.nbytes());
    return result;
  }

  executorch::extension::Module module_;
  std::string method_;
};

}  // namespace

std::unique_ptr<Model> open_model(const std::string& file, const std::string& method, int threads) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr && threads > 0) pool->_unsafe_reset_threadpool(threads);
  return std::make_unique<Program>(file, method);
}

std::string runtime() { return "executorch " FLASHBULB_VERSION; }

}  // namespace flashbulb
