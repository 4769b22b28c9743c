import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.stub.MetadataUtils;
import java.util.concurrent.TimeUnit;
import rlm.v1.GetServerInfoRequest;
import rlm.v1.ServerServiceGrpc;

/** Asks a server for its version, with the stubs that protoc and protoc-gen-grpc-java make. */
public final class Main {
  public static void main(String[] arguments) throws InterruptedException {
    var key = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
    var headers = new Metadata();
    headers.put(key, "Bearer " + System.getenv("RLM_API_KEY"));
    ManagedChannel channel =
        Grpc.newChannelBuilder(System.getenv("RLM_SERVER"), InsecureChannelCredentials.create()).build();
    try {
      var stub =
          ServerServiceGrpc.newBlockingStub(channel)
              .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
              .withDeadlineAfter(30, TimeUnit.SECONDS);
      System.out.println(stub.getServerInfo(GetServerInfoRequest.getDefaultInstance()).getVersion());
    } finally {
      channel.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
    }
  }
}
