// MPI behind mpi_module.hpp.

#include "sim/cli/mpi_module.hpp"

#include <mpi.h>

namespace coterie {
namespace {

class World final : public Mpi {
 public:
  World() {
    MPI_Init(nullptr, nullptr);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
    MPI_Comm_size(MPI_COMM_WORLD, &size_);
  }
  ~World() override { MPI_Finalize(); }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] int rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return size_; }
  void barrier() override { MPI_Barrier(MPI_COMM_WORLD); }
  void abort(int code) override { MPI_Abort(MPI_COMM_WORLD, code); }

 private:
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace
}  // namespace coterie

extern "C" coterie::Mpi* coterie_mpi_start();

coterie::Mpi* coterie_mpi_start() {
  return new coterie::World;
}
