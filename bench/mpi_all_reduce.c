// Open MPI's all-reduce of the sizes that `gangline bench wire` takes, by the ranks that mpirun starts: bytes, GB/s of buffer.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROUNDS = 5 };
static const double about_s = 0.25;

static double each_s(float *data, int count, int times) {
    MPI_Barrier(MPI_COMM_WORLD);
    double start = MPI_Wtime();
    for (int i = 0; i < times; i++) MPI_Allreduce(MPI_IN_PLACE, data, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    return (MPI_Wtime() - start) / times;
}

static int by_value(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

int main(int argc, char **argv) {
    static const int counts[] = {1 << 18, 1 << 22, 1 << 24};
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    float *data = calloc((size_t)counts[2], sizeof *data);
    for (int k = 0; k < 3; k++) {
        double took[ROUNDS], once = each_s(data, counts[k], 2);
        int times = 1 + (int)(about_s / once);
        MPI_Bcast(&times, 1, MPI_INT, 0, MPI_COMM_WORLD);
        for (int i = 0; i < ROUNDS; i++) took[i] = each_s(data, counts[k], times);
        qsort(took, ROUNDS, sizeof *took, by_value);
        if (!rank) printf("%d %.3f\n", 4 * counts[k], 4e-9 * counts[k] / took[ROUNDS / 2]);
    }
    free(data);
    MPI_Finalize();
    return 0;
}
