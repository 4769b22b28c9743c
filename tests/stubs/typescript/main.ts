// Asks a server for its version, with the stubs that protoc-gen-es makes.
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { ServerService } from "./gen/rlm/v1/server_pb";

const transport = createGrpcTransport({ baseUrl: `http://${process.env.RLM_SERVER}` });
const headers = { authorization: `Bearer ${process.env.RLM_API_KEY}` };
const info = await createClient(ServerService, transport).getServerInfo({}, { headers, timeoutMs: 30_000 });
console.log(info.version);
